//! What can be wrong with the arguments of a kernel.

/// An argument does not fit the others. Nothing was computed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KernelError {
    /// A slice is shorter or longer than its dimensions say.
    #[error("{what} holds {got} elements, its dimensions need {want}")]
    Length {
        what: &'static str,
        got: usize,
        want: usize,
    },
    /// Two dimensions that must agree differ, or one has no meaning.
    #[error("{what} is {got}, which does not fit {want}")]
    Dimension {
        what: &'static str,
        got: usize,
        want: usize,
    },
    /// A number that must be positive is zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// Scores cannot be scaled by this.
    #[error("the scale of attention scores is {0}; it must be a positive number")]
    Scale(f32),
}

/// Result of a kernel call.
pub type Result<T> = std::result::Result<T, KernelError>;

pub(crate) fn check_len(what: &'static str, got: usize, want: usize) -> Result<()> {
    if got == want {
        Ok(())
    } else {
        Err(KernelError::Length { what, got, want })
    }
}

pub(crate) fn check_dim(what: &'static str, got: usize, want: usize) -> Result<()> {
    if got == want {
        Ok(())
    } else {
        Err(KernelError::Dimension { what, got, want })
    }
}

pub(crate) fn check_positive(what: &'static str, value: usize) -> Result<()> {
    if value > 0 {
        Ok(())
    } else {
        Err(KernelError::Zero(what))
    }
}

/// Product of dimensions; overflow reads as a length no slice can have.
pub(crate) fn volume(dims: &[usize]) -> usize {
    dims.iter()
        .try_fold(1usize, |acc, &d| acc.checked_mul(d))
        .unwrap_or(usize::MAX)
}
