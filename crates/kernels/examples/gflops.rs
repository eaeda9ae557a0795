//! Prints GFLOP/s of the products beside the machine's peak.
//!
//! `cargo run --release -p sd-kernels --example gflops [-- NAME]`. Rates are per second of processor time, so that other work on
//! the machine disturbs them little; multiply by the number of cores. In the environment, `WALL` asks for rates by the clock,
//! `COLD` for weights that come from memory, `ROUNDS` for another number of tries than 5.
#![allow(clippy::unwrap_used)]

use half::bf16;
use sd_kernels::*;

unsafe extern "C" {
    fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
}

/// Seconds of processor time this process has used, or by the clock.
fn seconds() -> f64 {
    const MONOTONIC: i32 = 1;
    const PROCESS_CPU_TIME: i32 = 2;
    let clock = if std::env::var_os("WALL").is_some() {
        MONOTONIC
    } else {
        PROCESS_CPU_TIME
    };
    let mut time = [0i64; 2];
    // SAFETY: the C library writes one timespec, two 64-bit numbers on the 64-bit systems this runs on.
    unsafe { clock_gettime(clock, &raw mut time) };
    time[0] as f64 + time[1] as f64 * 1e-9
}

/// Whether the command line asks for this operation.
fn wanted(name: &str) -> bool {
    std::env::args().nth(1).is_none_or(|filter| name.contains(&filter))
}

fn measure(name: &str, flop: f64, mut run: impl FnMut()) {
    if !wanted(name) {
        return;
    }
    run();
    let mut best = f64::MAX;
    for _ in 0..std::env::var("ROUNDS").map_or(5, |n| n.parse().unwrap()) {
        let rounds = (2e9 / flop).ceil().max(1.0);
        let start = seconds();
        (0..rounds as usize).for_each(|_| run());
        best = best.min((seconds() - start) / rounds);
    }
    println!("{name:<44} {:>9.1} GFLOP/s  {:>9.3} ms", flop / best / 1e9, best * 1e3);
}

/// Numbers from -1 to 1: equal ones would cost the processor less power.
fn numbers<T: Element>(len: usize) -> Vec<T> {
    let mut x = 0x2545_F491_4F6C_DD1Du64;
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        T::from_f32((x >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
    };
    (0..len).map(next).collect()
}

/// Copies of weights to go round, so that they come from memory; one unless `COLD` is set.
fn copies(numbers: usize) -> usize {
    if std::env::var_os("COLD").is_some() {
        (128 << 20) / numbers + 1
    } else {
        1
    }
}

/// As many packed copies of weights `(outputs, inputs)` as [`copies`] asks for.
fn linear_weights((n, k): (usize, usize), kind: WeightType, columns: Columns) -> Vec<PackedWeights> {
    let w = numbers::<f32>(n * k);
    (0..copies(n * k))
        .map(|_| PackedWeights::pack(WeightSource::F32(&w), (n, k), kind, columns).unwrap())
        .collect()
}

fn products<T: Element>(kind: WeightType) {
    let name = match kind {
        WeightType::F32 => "f32",
        WeightType::Split => "split",
        WeightType::Bf16 => "bf16",
    };
    for (m, n, k) in [
        (1024, 1024, 512),
        (8192, 320, 320),
        (2048, 640, 640),
        (512, 1280, 1280),
        (8192, 320, 1280),
        (1280, 9216, 3072),
        (1280, 3072, 12288),
        (512, 1280, 5120),
        (154, 640, 768),
        (2, 1280, 1280),
        (512, 10240, 1280),
        (2048, 5120, 640),
        (512, 3840, 1280),
        (2048, 320, 320),
        (512, 640, 640),
        (128, 1280, 1280),
        (32, 1280, 1280),
        (2048, 320, 1280),
        (128, 1280, 5120),
        (154, 1280, 768),
    ] {
        let name = format!("{name} linear {m}x{n}x{k}");
        if !wanted(&name) {
            continue;
        }
        let a = numbers::<T>(m * k);
        let packed = linear_weights((n, k), kind, Columns::Plain);
        let mut packed = packed.iter().cycle();
        let mut out = vec![T::default(); m * n];
        let bias = vec![0.1f32; n];
        let ep = Epilogue {
            bias: Some(&bias),
            ..Epilogue::default()
        };
        measure(&name, 2.0 * (m * n * k) as f64, || {
            linear(&a, m, packed.next().unwrap(), &ep, &mut out).unwrap();
        });
    }
    for (m, n, k) in [
        (8192, 2560, 320),
        (2048, 5120, 640),
        (512, 10240, 1280),
        (2048, 2560, 320),
        (512, 5120, 640),
        (128, 10240, 1280),
    ] {
        let name = format!("{name} geglu {m}x{n}x{k}");
        if !wanted(&name) {
            continue;
        }
        let a = numbers::<T>(m * k);
        let packed = linear_weights((n, k), kind, Columns::Gated);
        let mut packed = packed.iter().cycle();
        let mut out = vec![T::default(); m * n / 2];
        let ep = Epilogue {
            activation: Activation::GeluErf,
            ..Epilogue::default()
        };
        measure(&name, 2.0 * (m * n * k) as f64, || {
            linear(&a, m, packed.next().unwrap(), &ep, &mut out).unwrap();
        });
    }
    for (b, side, from, to, kernel) in [
        (2, 64, 320, 320, 3),
        (2, 32, 640, 640, 3),
        (2, 16, 1280, 1280, 3),
        (2, 8, 1280, 1280, 3),
        (2, 32, 320, 320, 3),
        (2, 32, 640, 320, 3),
        (2, 16, 640, 640, 3),
        (2, 8, 2560, 1280, 3),
        (2, 4, 1280, 1280, 3),
        (2, 32, 640, 320, 1),
        (2, 64, 640, 320, 1),
        (1, 256, 128, 128, 3),
        (1, 256, 128, 3, 3),
    ] {
        let name = format!("{name} conv {b}x{side}x{side} {from}->{to} {kernel}x{kernel}");
        if !wanted(&name) {
            continue;
        }
        let shape = ConvShape::same(from, to, kernel);
        let x = numbers::<T>(b * side * side * from);
        let w = numbers::<f32>(from * to * kernel * kernel);
        let packed: Vec<_> = (0..copies(w.len()))
            .map(|_| PackedWeights::pack_conv(WeightSource::F32(&w), &shape, kind).unwrap())
            .collect();
        let mut packed = packed.iter().cycle();
        let mut out = vec![T::default(); b * side * side * to];
        let bias = vec![0.1f32; to];
        let ep = Epilogue {
            bias: Some(&bias),
            ..Epilogue::default()
        };
        let flop = 2.0 * (b * side * side * from * to * kernel * kernel) as f64;
        measure(&name, flop, || {
            conv2d(&x, (b, side, side), packed.next().unwrap(), &shape, &ep, &mut out).unwrap();
        });
    }
}

fn quantised() {
    for kind in QuantType::ALL {
        for (m, n, k) in [(1280, 9216, 3072), (1280, 3072, 12288), (1, 18432, 3072)] {
            let name = format!("{kind:?} linear {m}x{n}x{k}");
            if !wanted(&name) {
                continue;
            }
            // Bytes below 48, so that every scale is an ordinary number.
            let blocks: Vec<u8> = (0..n * k / kind.block_len() * kind.block_bytes())
                .map(|i| (i * 7919 % 48) as u8)
                .collect();
            let weights = QuantWeights {
                blocks: &blocks,
                kind,
                outputs: n,
                inputs: k,
            };
            let a = vec![bf16::from_f32(0.5); m * k];
            let mut out = vec![bf16::ZERO; m * n];
            measure(&name, 2.0 * (m * n * k) as f64, || {
                quant_linear(&a, m, &weights, &Epilogue::default(), &mut out).unwrap();
            });
        }
    }
}

fn passes<T: Element>() {
    let name = if size_of::<T>() == 2 { "bf16" } else { "f32" };
    for (batch, queries, keys, heads, width) in [
        (2, 4096, 4096, 8, 40),
        (2, 1024, 1024, 8, 80),
        (2, 4096, 77, 8, 40),
        (1, 1536, 1536, 24, 128),
        (1, 4096, 4096, 1, 512),
    ] {
        let shape = AttentionShape {
            batch,
            queries,
            keys,
            heads,
            width,
        };
        let q: Vec<T> = (0..batch * queries * heads * width)
            .map(|i| T::from_f32((i % 17) as f32 / 17.0))
            .collect();
        let k: Vec<T> = (0..batch * keys * heads * width)
            .map(|i| T::from_f32((i % 13) as f32 / 13.0))
            .collect();
        let mut out = vec![T::default(); q.len()];
        let flop = 4.0 * (batch * queries * keys * heads * width) as f64;
        measure(
            &format!("{name} attention {batch}x{queries}x{keys} {heads}x{width}"),
            flop,
            || {
                attention((&q, &k, &k), &shape, 0.1, AttentionMask::None, &mut out).unwrap();
            },
        );
    }
    let (b, p, c) = (2, 4096, 320);
    let x: Vec<T> = (0..b * p * c).map(|i| T::from_f32((i % 17) as f32 / 17.0)).collect();
    let (ones, mut out) = (vec![1f32; c], vec![T::default(); b * p * c]);
    let count = (b * p * c) as f64;
    measure(
        &format!("{name} group norm, silu {b}x{p}x{c} (Gnumber/s)"),
        count,
        || {
            group_norm(&x, (b, p, c), 32, (&ones, &ones), 1e-5, Activation::Silu, &mut out).unwrap();
        },
    );
    measure(&format!("{name} layer norm {b}x{p}x{c} (Gnumber/s)"), count, || {
        layer_norm(
            &x,
            c,
            NormAffine::Shared {
                scale: &ones,
                shift: &ones,
            },
            1e-5,
            &mut out,
        )
        .unwrap();
    });
    measure(&format!("{name} add {b}x{p}x{c} (Gnumber/s)"), count, || {
        add(&x, &x, &mut out).unwrap();
    });
}

fn main() {
    let (f32, bf16) = (peak_gflops(WeightType::F32), peak_gflops(WeightType::Bf16));
    println!(
        "{:?}, {} threads, at most {f32:.0} GFLOP/s in f32, {bf16:.0} in bf16",
        isa(),
        threads()
    );
    products::<f32>(WeightType::F32);
    products::<f32>(WeightType::Split);
    products::<bf16>(WeightType::Bf16);
    quantised();
    passes::<f32>();
    passes::<bf16>();
}
