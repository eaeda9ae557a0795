//! Every way a safetensors file can be damaged gives one clear error, and none a panic.

use sd_worker::weights::{RawTensor, SafeTensors, TensorSource, WeightsError};

use crate::support::{f32s, safetensors, with_header};

fn open(bytes: &[u8]) -> Result<SafeTensors, WeightsError> {
    let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    SafeTensors::open(file.path())
}

fn read(bytes: &[u8], name: &str) -> Result<RawTensor, WeightsError> {
    let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    SafeTensors::open(file.path())?.read(name)
}

fn entry(name: &str, dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
}

#[test]
fn each_damage_is_named() {
    let whole = safetensors(&[f32s("a", &[2], &[1.0, 2.0]), f32s("b", &[1], &[3.0])]);
    let one = |dtype: &str, shape: &str, offsets: &str, data: usize| {
        with_header(&format!("{{{}}}", entry("a", dtype, shape, offsets)), &vec![0; data])
    };
    let two = |first: &str, second: &str, data: usize| {
        let entries = [entry("a", "F32", "[1]", first), entry("b", "F32", "[1]", second)].join(",");
        with_header(&format!("{{{entries}}}"), &vec![0; data])
    };
    let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("empty", Vec::new(), "it has 0 bytes"),
        ("a few bytes", vec![1, 2, 3], "it has 3 bytes"),
        (
            "header longer than any",
            huge,
            "announces a header of 18446744073709551615 bytes",
        ),
        (
            "header longer than the file",
            [&200_u64.to_le_bytes()[..], b"{}"].concat(),
            "cut short",
        ),
        ("cut short in the data", whole[..whole.len() - 3].to_vec(), "cut short"),
        ("cut short in the header", whole[..20].to_vec(), "cut short"),
        ("no JSON", with_header("{\"a\":", &[]), "its header cannot be read"),
        (
            "an HTML page",
            b"<!DOCTYPE html><html><body>sign in</body></html>".to_vec(),
            "no safetensors file",
        ),
        (
            "a git-lfs pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0".to_vec(),
            "no safetensors file",
        ),
        ("overlapping ranges", two("[0,4]", "[2,6]", 6), "overlaps"),
        ("a gap", two("[0,4]", "[8,12]", 12), "leaves a gap"),
        (
            "a range backwards",
            one("F32", "[1]", "[4,0]", 4),
            "ends before it starts",
        ),
        ("a range out of the file", one("F32", "[4]", "[0,16]", 8), "cut short"),
        (
            "a range far out of the file",
            one("F32", "[4]", "[18446744073709551599,18446744073709551615]", 8),
            "cut short",
        ),
        (
            "the wrong type",
            one("F32", "[4]", "[0,8]", 8),
            "does not fit its range",
        ),
        ("an unknown type", one("Q99", "[4]", "[0,8]", 8), "`Q99`"),
        (
            "a shape that overflows",
            one("F32", "[4294967296,4294967296,4294967296]", "[0,8]", 8),
            "does not fit its range",
        ),
        ("a negative shape", one("F32", "[-1]", "[0,4]", 4), "tensor `a`"),
        (
            "missing offsets",
            with_header(r#"{"a":{"dtype":"F32","shape":[1]}}"#, &[0; 4]),
            "tensor `a`: missing field",
        ),
        (
            "a name that comes twice",
            {
                let entries = [entry("a", "F32", "[1]", "[0,4]"), entry("a", "F32", "[1]", "[4,8]")].join(",");
                with_header(&format!("{{{entries}}}"), &[0; 8])
            },
            "`a` is there twice",
        ),
        ("bytes left over", [&whole[..], &[0; 5]].concat(), "5 bytes at its end"),
    ];
    for (what, bytes, expected) in cases {
        match open(bytes) {
            Err(error @ WeightsError::Damaged { .. }) => {
                let text = error.to_string();
                assert!(text.contains(expected), "{what}: {text}");
                assert!(text.contains(".safetensors"), "{what}: {text}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn numbers_that_are_not_finite_name_their_tensor() {
    for bad in [f32::NAN, f32::INFINITY] {
        let error = read(
            &safetensors(&[f32s("down.weight", &[3], &[0.0, bad, 1.0])]),
            "down.weight",
        )
        .unwrap_err();
        assert!(
            matches!(&error, WeightsError::NotFinite { name, .. } if name == "down.weight"),
            "{error}"
        );
    }
    // Far inside a tensor that several threads read.
    let mut numbers = vec![0.5_f32; 3 << 20];
    numbers[(2 << 20) + 17] = f32::NAN;
    let error = read(&safetensors(&[f32s("big", &[3 << 20], &numbers)]), "big").unwrap_err();
    assert!(matches!(error, WeightsError::NotFinite { .. }), "{error}");
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let whole = safetensors(&[f32s("a", &[2, 2], &[1.0, 2.0, 3.0, 4.0]), f32s("b", &[1], &[3.0])]);
    for length in 0..whole.len() {
        assert!(
            matches!(open(&whole[..length]), Err(WeightsError::Damaged { .. })),
            "{length} bytes"
        );
    }
    assert!(open(&whole).is_ok());
}

#[test]
fn every_flipped_byte_of_a_header_is_an_error_or_another_header_but_no_panic() {
    let whole = safetensors(&[f32s("a", &[2, 2], &[1.0, 2.0, 3.0, 4.0]), f32s("b", &[1], &[3.0])]);
    let header = whole.len() - 20;
    for at in 0..header {
        for flip in [0x01, 0x20, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            if let Ok(tensors) = open(&bytes) {
                assert_eq!(tensors.names().len(), 2, "byte {at}");
            }
        }
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let error = read(&safetensors(&[f32s("a", &[1], &[1.0])]), "b").unwrap_err();
    assert_eq!(error.to_string(), "the weights have no tensor `b`");
}

#[test]
fn what_is_written_is_read() {
    let big: Vec<f32> = (0..(2 << 20) + 5).map(|i| i as f32).collect();
    let bytes = safetensors(&[
        f32s("small", &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
        f32s("big", &[big.len()], &big),
    ]);
    let small = read(&bytes, "small").unwrap();
    assert_eq!(
        (small.shape.as_slice(), small.to_f32("small").unwrap().as_slice()),
        ([2, 2].as_slice(), [1.0, 2.0, 3.0, 4.0].as_slice())
    );
    assert_eq!(read(&bytes, "big").unwrap().to_f32("big").unwrap(), big);
}
