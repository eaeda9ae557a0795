//! Which training timesteps a run visits: the three spacings of diffusers, as numpy computes them.

use super::Spacing;

/// `numpy.linspace(start, stop, n)`.
pub(super) fn linspace(start: f64, stop: f64, n: usize) -> Vec<f64> {
    if n < 2 {
        return vec![start; n];
    }
    let step = (stop - start) / (n - 1) as f64;
    let mut values: Vec<f64> = (0..n).map(|i| i as f64 * step + start).collect();
    values[n - 1] = stop;
    values
}

/// The fractional timesteps of the sigma samplers (Euler, LMS, Heun, DPM2, DPM++ SDE), descending.
pub(super) fn fractional(spacing: Spacing, n: usize, train: usize, offset: usize) -> Vec<f64> {
    match spacing {
        Spacing::Linspace => linspace(0.0, (train - 1) as f64, n)
            .into_iter()
            .rev()
            .map(|t| f64::from(t as f32))
            .collect(),
        _ => whole(spacing, n, train, offset).into_iter().map(|t| t as f64).collect(),
    }
}

/// The whole timesteps of DDIM, DDPM, PNDM and LCM, descending.
pub(super) fn whole(spacing: Spacing, n: usize, train: usize, offset: usize) -> Vec<usize> {
    match spacing {
        Spacing::Linspace => linspace(0.0, (train - 1) as f64, n)
            .into_iter()
            .rev()
            .map(round)
            .collect(),
        Spacing::Leading => leading(n, train / n, train, offset),
        Spacing::Trailing => trailing(n, train, train),
    }
}

/// The whole timesteps of DPM-Solver and UniPC, descending: one more point than steps, the last one dropped. `last` is
/// the number of usable training timesteps.
pub(super) fn multistep(spacing: Spacing, n: usize, train: usize, last: usize, offset: usize) -> Vec<usize> {
    let mut timesteps: Vec<usize> = match spacing {
        Spacing::Linspace => linspace(0.0, (last - 1) as f64, n + 1)
            .into_iter()
            .rev()
            .map(round)
            .collect(),
        Spacing::Leading => leading(n + 1, last / (n + 1), train, offset),
        Spacing::Trailing => trailing(n, train, last),
    };
    timesteps.truncate(n);
    timesteps
}

fn leading(n: usize, ratio: usize, train: usize, offset: usize) -> Vec<usize> {
    (0..n).rev().map(|i| (i * ratio + offset).min(train - 1)).collect()
}

/// `numpy.arange(last, 0, -train / n)`, rounded, less one. numpy's rounding gives some counts (61, 103, ...) one element
/// too many, at -1: it is left out here.
fn trailing(n: usize, train: usize, last: usize) -> Vec<usize> {
    let ratio = train as f64 / n as f64;
    let count = ((last as f64 / ratio).ceil() as usize).min(n);
    let first = last as f64;
    let delta = (first - ratio) - first;
    (0..count).map(|i| round(first + i as f64 * delta).max(1) - 1).collect()
}

/// numpy's rounding: ties to even.
fn round(t: f64) -> usize {
    t.round_ties_even() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_the_steps_asked_for() {
        for n in 1..=150 {
            for spacing in [Spacing::Linspace, Spacing::Leading, Spacing::Trailing] {
                for timesteps in [whole(spacing, n, 1000, 1), multistep(spacing, n, 1000, 1000, 1)] {
                    assert_eq!(timesteps.len(), n, "{spacing:?}");
                    assert!(timesteps.iter().all(|t| *t < 1000));
                    assert!(timesteps.windows(2).all(|w| w[0] > w[1]));
                }
            }
        }
    }

    #[test]
    fn known_values() {
        assert_eq!(whole(Spacing::Leading, 4, 1000, 1), [751, 501, 251, 1]);
        assert_eq!(whole(Spacing::Trailing, 4, 1000, 1), [999, 749, 499, 249]);
        assert_eq!(whole(Spacing::Linspace, 4, 1000, 1), [999, 666, 333, 0]);
        assert_eq!(multistep(Spacing::Linspace, 4, 1000, 1000, 0), [999, 749, 500, 250]);
    }
}
