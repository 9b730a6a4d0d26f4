//! Charts, drawn here as SVG: they need no script, and each bar tells its numbers in its title.

use askama::{Template, filters::HtmlSafe};

use super::words::{Count, Requests};

/// A row of small bars, as wide as a word.
#[derive(Debug, Template)]
#[template(path = "sparkline.html")]
pub(super) struct Sparkline {
    label: String,
    bars: Vec<Rect>,
}

impl HtmlSafe for Sparkline {}

/// A bar, or a part of one.
#[derive(Debug)]
struct Rect {
    x: usize,
    y: i64,
    width: usize,
    height: i64,
    /// What colours it.
    class: &'static str,
    title: String,
}

impl Sparkline {
    const HEIGHT: i64 = 28;
    const STEP: usize = 5;

    /// What was used how often in the last hours, the oldest first.
    pub(super) fn new(hours: &[i64]) -> Self {
        let most = hours.iter().copied().max().unwrap_or(0).max(1);
        let bars = hours.iter().enumerate().filter(|(_, requests)| **requests > 0);
        let bars = bars.map(|(place, requests)| {
            let height = scaled(*requests, most, Self::HEIGHT);
            Rect {
                x: place * Self::STEP,
                y: Self::HEIGHT - height,
                width: Self::STEP - 1,
                height,
                class: "ok",
                title: String::new(),
            }
        });
        let label = format!("{} in {} hours", Requests(hours.iter().sum()), hours.len());
        Self { label, bars: bars.collect() }
    }
}

/// Bars that stand on each other, one pile for each spell of time.
#[derive(Debug, Template)]
#[template(path = "chart.html")]
pub(super) struct Chart {
    label: String,
    rects: Vec<Rect>,
    /// The height of the greatest pile, as a number.
    most: String,
    /// Times below, with their places.
    times: Vec<(usize, String)>,
    /// What the parts are.
    legend: Vec<(&'static str, &'static str)>,
}

impl HtmlSafe for Chart {}

/// One spell of time.
#[derive(Debug)]
pub(super) struct Pile {
    /// When it began.
    pub(super) time: String,
    /// What is piled up, from below, in the order of the legend.
    pub(super) parts: Vec<i64>,
}

impl Chart {
    const WIDTH: usize = 720;
    const HEIGHT: i64 = 150;
    const TOP: i64 = 22;

    /// Piles, the oldest first; the legend gives each part its class and its name.
    pub(super) fn new(
        label: String,
        legend: Vec<(&'static str, &'static str)>,
        piles: &[Pile],
    ) -> Self {
        let most = piles.iter().map(|pile| pile.parts.iter().sum()).max().unwrap_or(0);
        let step = Self::WIDTH / piles.len().max(1);
        let mut rects = Vec::new();
        for (place, pile) in piles.iter().enumerate() {
            let told: Vec<_> =
                legend.iter().zip(&pile.parts).filter(|(_, part)| **part > 0).collect();
            let told = told.iter().map(|((_, name), part)| format!("{} {name}", Count(**part)));
            let title = format!("{}: {}", pile.time, told.collect::<Vec<_>>().join(", "));
            let mut below = 0;
            for ((class, _), part) in legend.iter().zip(&pile.parts).filter(|(_, part)| **part > 0)
            {
                let height = scaled(*part, most.max(1), Self::HEIGHT);
                below = (below + height).min(Self::HEIGHT);
                let y = Self::TOP + Self::HEIGHT - below;
                let (x, width, title) = (place * step, (step - 1).max(1), title.clone());
                rects.push(Rect { x, y, width, height, class, title });
            }
        }
        let every = (piles.len() / 6).max(1);
        let times = piles.iter().enumerate().step_by(every);
        let times = times.map(|(place, pile)| (place * step, pile.time.clone())).collect();
        Self { label, rects, most: Count(most).to_string(), times, legend }
    }
}

/// A number as a height: what is there at all is to be seen.
fn scaled(number: i64, most: i64, height: i64) -> i64 {
    let exact = i128::from(number) * i128::from(height) / i128::from(most.max(1));
    i64::try_from(exact).unwrap_or(height).clamp(1, height)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_at_all_is_to_be_seen() {
        assert_eq!(scaled(1, 1_000_000, 28), 1);
        assert_eq!(scaled(1_000_000, 1_000_000, 28), 28);
        assert_eq!(scaled(i64::MAX, i64::MAX, 150), 150);
        let drawn = Sparkline::new(&[0, 1, 1000]).to_string();
        assert_eq!(drawn.matches("<rect").count(), 2);
        assert!(drawn.contains("1,001 requests in 3 hours"));
    }

    #[test]
    fn bars_tell_their_numbers() {
        let pile =
            |time: &str, parts: &[i64]| Pile { time: time.to_owned(), parts: parts.to_vec() };
        let legend = vec![("ok", "succeeded"), ("refused", "refused")];
        let piles = [pile("08:00", &[1200, 3]), pile("09:00", &[0, 0])];
        let drawn = Chart::new("Requests".to_owned(), legend.clone(), &piles).to_string();
        assert!(drawn.contains("<title>08:00: 1,200 succeeded, 3 refused</title>"), "{drawn}");
        assert_eq!(drawn.matches("<title>").count(), 2);
        // Nothing at all is a chart, too.
        assert!(Chart::new("Requests".to_owned(), legend, &[]).to_string().contains("<svg"));
    }
}
