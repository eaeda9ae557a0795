//! Classifier-free guidance: how far to go from the negative prompt's prediction past the prompt's.

/// When and how strongly a run is guided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// 1 and below: not at all, and the negative prompt's prediction is not computed.
    pub scale: f32,
    /// Fractions of the run between which it is guided.
    pub interval: (f32, f32),
}

impl Guidance {
    /// Whether any step is guided.
    pub fn is_used(self) -> bool {
        self.scale > 1.0
    }

    /// Whether the step after `done` of `steps` is guided.
    pub fn at(self, done: usize, steps: usize) -> bool {
        let place = done as f32 / steps.max(1) as f32;
        self.is_used() && place >= self.interval.0 && place < self.interval.1
    }

    /// Turns the prompt's prediction into the guided one.
    pub fn apply(self, negative: &[f32], prompt: &mut [f32]) {
        for (value, negative) in prompt.iter_mut().zip(negative) {
            *value = negative + self.scale * (*value - negative);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_of_one_or_none_needs_no_negative_pass() {
        for scale in [0.0, 1.0] {
            assert!(
                !Guidance {
                    scale,
                    interval: (0.0, 1.0)
                }
                .is_used()
            );
        }
    }

    #[test]
    fn the_interval_is_a_share_of_the_steps() {
        let guidance = Guidance {
            scale: 5.0,
            interval: (0.25, 0.75),
        };
        let guided: Vec<bool> = (0..4).map(|done| guidance.at(done, 4)).collect();
        assert_eq!(guided, [false, true, true, false]);
        let all = Guidance {
            scale: 5.0,
            interval: (0.0, 1.0),
        };
        assert!((0..7).all(|done| all.at(done, 7)));
    }

    #[test]
    fn it_goes_on_from_the_negative_through_the_prompt() {
        let mut prompt = [1.0, 2.0];
        Guidance {
            scale: 3.0,
            interval: (0.0, 1.0),
        }
        .apply(&[0.5, 4.0], &mut prompt);
        assert_eq!(prompt, [2.0, -2.0]);
    }
}
