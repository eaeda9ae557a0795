//! From what a user asks for to a device and a compute type.

use candle_core::{DType, Device};

use crate::domain::load::{DeviceChoice, DtypeChoice};
use crate::domain::model::Family;

/// A device that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The program was built without it.
    #[error("this program was built without {name}; build it with `--features {name}`, or use --device cpu")]
    NotBuilt {
        /// `cuda` or `metal`: also the cargo feature.
        name: &'static str,
    },
    /// The driver refused.
    #[error("device {name} cannot be used: {}", crate::weights::without_backtrace(source))]
    Refused {
        /// The device.
        name: String,
        /// Why.
        source: candle_core::Error,
    },
}

/// Opens a device. `auto` takes the first GPU that the program was built for and the machine has, else the CPU.
///
/// # Errors
/// A GPU was asked for by name and cannot be had.
pub fn open(choice: DeviceChoice) -> Result<Device, DeviceError> {
    match choice {
        DeviceChoice::Auto => Ok(cuda(0).or_else(|_| metal()).unwrap_or(Device::Cpu)),
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(number) => cuda(number),
        DeviceChoice::Metal => metal(),
    }
}

fn cuda(number: usize) -> Result<Device, DeviceError> {
    if !candle_core::utils::cuda_is_available() {
        return Err(DeviceError::NotBuilt { name: "cuda" });
    }
    Device::new_cuda(number).map_err(|source| DeviceError::Refused {
        name: format!("cuda:{number}"),
        source,
    })
}

fn metal() -> Result<Device, DeviceError> {
    if !candle_core::utils::metal_is_available() {
        return Err(DeviceError::NotBuilt { name: "metal" });
    }
    Device::new_metal(0).map_err(|source| DeviceError::Refused {
        name: "metal".to_owned(),
        source,
    })
}

/// The compute type. `auto`: `bf16` on CUDA, `f16` on Metal; on the CPU `f32`, which gives diffusers' pictures to the
/// last bits, but `bf16` for the families whose weights would hardly fit into memory otherwise, and for a large model
/// whose file has half precision (`halved`): whoever chose such a file wants half the memory, and `bf16` is several times
/// faster. `f16` on the CPU is `bf16` too: no CPU multiplies halves, and through conversions one step takes minutes.
#[must_use]
pub fn dtype(choice: DtypeChoice, device: &Device, family: Family, halved: bool) -> DType {
    match choice {
        DtypeChoice::F32 => DType::F32,
        DtypeChoice::Bf16 => DType::BF16,
        DtypeChoice::F16 if device.is_cpu() => DType::BF16,
        DtypeChoice::F16 => DType::F16,
        DtypeChoice::Auto if device.is_cuda() => DType::BF16,
        DtypeChoice::Auto if device.is_metal() => DType::F16,
        DtypeChoice::Auto if halved || family == Family::Sdxl || family.is_flux() => DType::BF16,
        DtypeChoice::Auto => DType::F32,
    }
}

/// A device's name on the wire: `cpu`, `cuda:0`, `metal`.
#[must_use]
pub fn name(device: &Device, choice: DeviceChoice) -> String {
    match (device, choice) {
        (Device::Cpu, _) => "cpu".to_owned(),
        (Device::Cuda(_), DeviceChoice::Cuda(number)) => format!("cuda:{number}"),
        (Device::Cuda(_), _) => "cuda:0".to_owned(),
        (Device::Metal(_), _) => "metal".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_keeps_small_models_exact_and_large_ones_small() {
        let auto = |family, halved| dtype(DtypeChoice::Auto, &Device::Cpu, family, halved);
        assert_eq!(auto(Family::Sd1, false), DType::F32);
        assert_eq!(auto(Family::Sd1, true), DType::BF16);
        assert_eq!(auto(Family::Sdxl, false), DType::BF16);
        assert_eq!(dtype(DtypeChoice::F16, &Device::Cpu, Family::Sd1, true), DType::BF16);
        assert_eq!(
            dtype(DtypeChoice::F32, &Device::Cpu, Family::Sd1, true),
            DType::F32,
            "what is asked for is what is computed"
        );
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused_and_auto_goes_on() {
        assert!(open(DeviceChoice::Auto).is_ok());
        if !candle_core::utils::metal_is_available() {
            let error = open(DeviceChoice::Metal).unwrap_err();
            assert!(error.to_string().contains("--features metal"), "{error}");
        }
    }
}
