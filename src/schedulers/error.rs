use crate::domain::sampling::{Sampler, Schedule, UnsupportedSchedule};

/// Why a scheduler could not be built.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    #[error(transparent)]
    Schedule(#[from] UnsupportedSchedule),
    #[error(
        "sampler {sampler} does not exist for flow-matching models; allowed: {}",
        names(Sampler::FLOW)
    )]
    FlowSampler { sampler: Sampler },
    #[error(
        "schedule {schedule} does not exist for flow-matching models; allowed: {}",
        names(Schedule::FLOW)
    )]
    FlowSchedule { schedule: Schedule },
    #[error("steps is {steps}; {sampler} takes 1 to {max}")]
    Steps { sampler: Sampler, steps: usize, max: usize },
    #[error("strength is {0}; it must lie between 0 and 1")]
    Strength(f64),
    #[error("the scheduler configuration has {field} = {value}, which is not supported; {hint}")]
    Config {
        field: &'static str,
        value: String,
        hint: &'static str,
    },
    #[error("the scheduler configuration is not valid: {0}")]
    Json(#[from] serde_json::Error),
}

fn names<T: ToString>(all: &[T]) -> String {
    all.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}
