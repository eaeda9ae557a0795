//! Every operation that models are made of, at the shapes of SD 1.5 (512x512) and FLUX, beside what the machine could do.
//!
//! `cargo bench --bench ops [-- FILTER]`. Criterion's own lines are times; the table at the end has GFLOP/s with the share of the
//! machine's peak (a loop of multiply-adds alone), or GB/s beside a plain copy's, and quantised products beside candle's
//! `QMatMul`, which candle-transformers' `quantized_model` computes with.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use criterion::Criterion;
use half::bf16;
use sd_kernels::*;

/// What an operation's time is held against.
#[derive(Clone, Copy)]
enum Work {
    /// Floating-point operations.
    Flop(f64),
    /// Bytes read and written.
    Bytes(f64),
}

struct Bench {
    criterion: Criterion,
    filter: Option<String>,
    /// GFLOP/s in f32 and bf16, and GB/s of a copy.
    peaks: [f64; 3],
    lines: Vec<String>,
}

impl Bench {
    fn new() -> Self {
        let criterion = Criterion::default()
            .sample_size(10)
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_millis(600));
        Self {
            criterion,
            filter: std::env::args().skip(1).find(|arg| !arg.starts_with('-')),
            peaks: [peak_gflops(WeightType::F32), peak_gflops(WeightType::Bf16), copy_rate()],
            lines: Vec::new(),
        }
    }

    /// Measures `run` and answers its median in seconds; `None` if the filter leaves it out.
    fn measure(&mut self, name: &str, work: Work, mut run: impl FnMut()) -> Option<f64> {
        if self.filter.as_ref().is_some_and(|filter| !name.contains(filter)) {
            return None;
        }
        let mut seconds = Vec::new();
        self.criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let start = Instant::now();
                (0..rounds).for_each(|_| run());
                let time = start.elapsed();
                seconds.push(time.as_secs_f64() / rounds as f64);
                time
            });
        });
        seconds.sort_by(f64::total_cmp);
        let median = *seconds.get(seconds.len() / 2)?;
        let is_bf16 = !name.starts_with("f32");
        let (rate, peak, unit) = match work {
            Work::Flop(flop) => (flop / median / 1e9, self.peaks[usize::from(is_bf16)], "GFLOP/s"),
            Work::Bytes(bytes) => (bytes / median / 1e9, self.peaks[2], "GB/s"),
        };
        let share = 100.0 * rate / peak;
        self.lines.push(format!(
            "{name:<44} {:>9.3} ms {rate:>7.1} of {peak:>7.1} {unit} ({share:.0} %)",
            median * 1e3
        ));
        Some(median)
    }
}

/// GB/s, read and written, of a copy by all threads.
fn copy_rate() -> f64 {
    let from = vec![1f32; 8 << 20];
    let mut to = vec![0f32; from.len()];
    let tries = (0..5).map(|_| {
        let start = Instant::now();
        assert!(activate(&from, Activation::None, &mut to).is_ok());
        8.0 * from.len() as f64 / start.elapsed().as_secs_f64() / 1e9
    });
    tries.fold(0.0, f64::max)
}

fn numbers<T: Element>(count: usize) -> Vec<T> {
    let number = |i| T::from_f32(((i * 7919) % 1009) as f32 / 504.0 - 1.0);
    (0..count).map(number).collect()
}

fn products<T: Element>(bench: &mut Bench, name: &str, kind: WeightType) -> Result<()> {
    for (rows, outputs, inputs, columns) in [
        (8192, 320, 320, Columns::Plain),
        (2048, 640, 640, Columns::Plain),
        (512, 1280, 1280, Columns::Plain),
        (8192, 320, 1280, Columns::Plain),
        (1536, 3072, 3072, Columns::Plain),
        (8192, 2560, 320, Columns::Gated),
    ] {
        let (x, w) = (numbers::<T>(rows * inputs), numbers::<f32>(outputs * inputs));
        let weights = PackedWeights::pack(WeightSource::F32(&w), (outputs, inputs), kind, columns)?;
        let (what, activation) = match columns {
            Columns::Plain => ("linear", Activation::None),
            Columns::Gated => ("geglu", Activation::GeluErf),
        };
        let epilogue = Epilogue {
            activation,
            ..Epilogue::default()
        };
        let work = Work::Flop(2.0 * (rows * outputs * inputs) as f64);
        bench.measure(&format!("{name} {what} {rows}x{outputs}x{inputs}"), work, || {
            assert!(fresh::linear(&x, rows, &weights, &epilogue).is_ok());
        });
    }
    Ok(())
}

fn convolutions<T: Element>(bench: &mut Bench, name: &str, kind: WeightType) -> Result<()> {
    for (batch, side, inputs, outputs, kernel, upsample) in [
        (2, 64, 320, 320, 3, false),
        (2, 32, 640, 640, 3, false),
        (2, 16, 1280, 1280, 3, false),
        (2, 8, 1280, 1280, 3, false),
        (2, 64, 640, 320, 1, false),
        (1, 512, 128, 128, 3, false),
        (1, 512, 128, 3, 3, false),
        (1, 256, 256, 256, 3, true),
    ] {
        let shape = ConvShape {
            upsample,
            ..ConvShape::same(inputs, outputs, kernel)
        };
        let w = numbers::<f32>(inputs * outputs * kernel * kernel);
        let weights = PackedWeights::pack_conv(WeightSource::F32(&w), &shape, kind)?;
        let x = numbers::<T>(batch * side * side * inputs);
        let (height, width) = shape.output(side, side)?;
        // As the definition has it; of a doubled picture less is computed.
        let work = Work::Flop(2.0 * (batch * height * width * inputs * outputs * kernel * kernel) as f64);
        let doubled = if upsample { " doubled" } else { "" };
        let title = format!("{name} conv {kernel}x{kernel} {batch}x{side}x{side} {inputs}-{outputs}{doubled}");
        bench.measure(&title, work, || {
            assert!(fresh::conv2d(&x, (batch, side, side), &weights, &shape, &Epilogue::default()).is_ok());
        });
    }
    Ok(())
}

fn attentions<T: Element>(bench: &mut Bench, name: &str) {
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
        let q = numbers::<T>(batch * queries * heads * width);
        let k = numbers::<T>(batch * keys * heads * width);
        let work = Work::Flop(4.0 * (batch * queries * keys * heads * width) as f64);
        let title = format!("{name} attention {batch}x{queries}x{keys} {heads}x{width}");
        bench.measure(&title, work, || {
            assert!(fresh::attention((&q, &k, &k), &shape, 0.1, AttentionMask::None).is_ok());
        });
    }
}

fn passes<T: Element>(bench: &mut Bench, name: &str) {
    for (batch, pixels, channels) in [(2, 4096, 320), (1, 512 * 512, 128)] {
        let count = batch * pixels * channels;
        let (x, ones) = (numbers::<T>(count), vec![1f32; channels]);
        let (dims, work) = (
            (batch, pixels, channels),
            Work::Bytes((3 * count * size_of::<T>()) as f64),
        );
        let title = format!("{name} group norm, silu {batch}x{pixels}x{channels}");
        bench.measure(&title, work, || {
            assert!(fresh::group_norm(&x, dims, 32, (&ones, &ones), 1e-5, Activation::Silu).is_ok());
        });
    }
    let (x, ones) = (numbers::<T>(8192 * 320), vec![1f32; 320]);
    let work = Work::Bytes((2 * x.len() * size_of::<T>()) as f64);
    let affine = NormAffine::Shared {
        scale: &ones,
        shift: &ones,
    };
    bench.measure(&format!("{name} layer norm 8192x320"), work, || {
        assert!(fresh::layer_norm(&x, 320, affine, 1e-5).is_ok());
    });
    let (x, angles) = (numbers::<T>(1536 * 24 * 128), vec![0.5f32; 1536 * 64]);
    let work = Work::Bytes((2 * x.len() * size_of::<T>()) as f64);
    bench.measure(&format!("{name} rope 1536x24x128"), work, || {
        assert!(fresh::rope(&x, (1, 1536, 24, 128), (&angles, &angles), None).is_ok());
    });
}

/// FLUX's products with GGUF weights, beside candle's.
fn quantised(bench: &mut Bench) -> candle_core::Result<()> {
    let formats = [(GgmlDType::Q4_0, QuantType::Q4_0), (GgmlDType::Q8_0, QuantType::Q8_0)];
    let sizes = [(1280, 9216, 3072), (1280, 3072, 12288), (1, 18432, 3072)];
    for (format, kind) in formats {
        for (rows, outputs, inputs) in sizes {
            let title = format!("{kind:?} linear {rows}x{outputs}x{inputs}");
            if bench.filter.as_ref().is_some_and(|filter| !title.contains(filter)) {
                continue;
            }
            let w = Tensor::from_vec(numbers::<f32>(outputs * inputs), (outputs, inputs), &Device::Cpu)?;
            let blocks = Arc::new(QTensor::quantize(&w, format)?);
            let x = Tensor::from_vec(numbers::<f32>(rows * inputs), (rows, inputs), &Device::Cpu)?;
            let peer = QMatMul::from_arc(blocks.clone())?;
            let work = Work::Flop(2.0 * (rows * outputs * inputs) as f64);
            let theirs = bench.measure(&format!("{title} candle"), work, || {
                assert!(peer.forward(&x).is_ok());
            });
            let bytes = blocks.data()?;
            let weights = QuantWeights {
                blocks: &bytes,
                kind,
                outputs,
                inputs,
            };
            let x = numbers::<bf16>(rows * inputs);
            let ours = bench.measure(&title, work, || {
                assert!(fresh::quant_linear(&x, rows, &weights, &Epilogue::default()).is_ok());
            });
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                let ratio = theirs / ours;
                bench
                    .lines
                    .push(format!("{title:<44} {ratio:>9.2} times candle's speed"));
            }
        }
    }
    Ok(())
}

fn all<T: Element>(bench: &mut Bench, name: &str, kind: WeightType) -> Result<()> {
    products::<T>(bench, name, kind)?;
    convolutions::<T>(bench, name, kind)?;
    attentions::<T>(bench, name);
    passes::<T>(bench, name);
    Ok(())
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut bench = Bench::new();
    all::<f32>(&mut bench, "f32", WeightType::F32)?;
    all::<bf16>(&mut bench, "bf16", WeightType::Bf16)?;
    quantised(&mut bench)?;
    println!("\n{:?}, {} threads", isa(), threads());
    bench.lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}
