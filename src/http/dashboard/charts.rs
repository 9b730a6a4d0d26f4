//! Charts as SVG, rendered by the server: they need no JavaScript. The title of each bar has its
//! numbers.

use askama::{Template, filters::HtmlSafe};

use super::format::{Count, RequestCount};

/// A small bar chart in one line of text.
#[derive(Debug, Template)]
#[template(path = "sparkline.html")]
pub(super) struct Sparkline {
    label: String,
    bars: Vec<Rect>,
}

impl HtmlSafe for Sparkline {}

/// A bar, or one segment of a stacked bar.
#[derive(Debug)]
struct Rect {
    x: usize,
    y: i64,
    width: usize,
    height: i64,
    /// The CSS class that sets the colour.
    class: &'static str,
    title: String,
}

impl Sparkline {
    const HEIGHT: i64 = 28;
    const STEP: usize = 5;

    /// Draws the number of requests per hour, the oldest hour first.
    pub(super) fn new(hours: &[i64]) -> Self {
        let max = hours.iter().copied().max().unwrap_or(0).max(1);
        let bars = hours.iter().enumerate().filter(|(_, requests)| **requests > 0);
        let bars = bars.map(|(index, requests)| {
            let height = scale(*requests, max, Self::HEIGHT);
            Rect {
                x: index * Self::STEP,
                y: Self::HEIGHT - height,
                width: Self::STEP - 1,
                height,
                class: "ok",
                title: String::new(),
            }
        });
        let label = format!("{} in {} hours", RequestCount(hours.iter().sum()), hours.len());
        Self { label, bars: bars.collect() }
    }
}

/// A chart with one stacked bar for each period.
#[derive(Debug, Template)]
#[template(path = "chart.html")]
pub(super) struct Chart {
    label: String,
    rects: Vec<Rect>,
    /// The total of the highest bar.
    max_label: String,
    /// The labels of the time axis, with their x coordinates.
    axis_labels: Vec<(usize, String)>,
    /// The CSS class and the name of each segment.
    legend: Vec<(&'static str, &'static str)>,
}

impl HtmlSafe for Chart {}

/// The stacked bar of one period.
#[derive(Debug)]
pub(super) struct StackedBar {
    /// The start of the period, as a label.
    pub(super) label: String,
    /// The values of the segments from the bottom up, in the order of the legend.
    pub(super) segments: Vec<i64>,
}

impl Chart {
    const WIDTH: usize = 720;
    const HEIGHT: i64 = 150;
    const TOP: i64 = 22;

    /// Draws bars, the oldest first. The legend has the CSS class and the name of each segment.
    pub(super) fn new(
        label: String,
        legend: Vec<(&'static str, &'static str)>,
        piles: &[StackedBar],
    ) -> Self {
        let max = piles.iter().map(|pile| pile.segments.iter().sum()).max().unwrap_or(0);
        let step = Self::WIDTH / piles.len().max(1);
        let mut rects = Vec::new();
        for (index, pile) in piles.iter().enumerate() {
            let segments: Vec<_> =
                legend.iter().zip(&pile.segments).filter(|(_, part)| **part > 0).collect();
            let texts =
                segments.iter().map(|((_, name), part)| format!("{} {name}", Count(**part)));
            let title = format!("{}: {}", pile.label, texts.collect::<Vec<_>>().join(", "));
            let mut top = 0;
            for ((class, _), part) in
                legend.iter().zip(&pile.segments).filter(|(_, part)| **part > 0)
            {
                let height = scale(*part, max.max(1), Self::HEIGHT);
                top = (top + height).min(Self::HEIGHT);
                let y = Self::TOP + Self::HEIGHT - top;
                let (x, width, title) = (index * step, (step - 1).max(1), title.clone());
                rects.push(Rect { x, y, width, height, class, title });
            }
        }
        let label_interval = (piles.len() / 6).max(1);
        let times = piles.iter().enumerate().step_by(label_interval);
        let axis_labels = times.map(|(index, pile)| (index * step, pile.label.clone())).collect();
        Self { label, rects, max_label: Count(max).to_string(), axis_labels, legend }
    }
}

/// Scales a number to a height of at least 1, so that small numbers stay visible.
fn scale(number: i64, max: i64, height: i64) -> i64 {
    let exact = i128::from(number) * i128::from(height) / i128::from(max.max(1));
    i64::try_from(exact).unwrap_or(height).clamp(1, height)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_value_has_a_visible_bar() {
        assert_eq!(scale(1, 1_000_000, 28), 1);
        assert_eq!(scale(1_000_000, 1_000_000, 28), 28);
        assert_eq!(scale(i64::MAX, i64::MAX, 150), 150);
        let drawn = Sparkline::new(&[0, 1, 1000]).to_string();
        assert_eq!(drawn.matches("<rect").count(), 2);
        assert!(drawn.contains("1,001 requests in 3 hours"));
    }

    #[test]
    fn bar_title_contains_its_numbers() {
        let pile = |time: &str, parts: &[i64]| StackedBar {
            label: time.to_owned(),
            segments: parts.to_vec(),
        };
        let legend = vec![("ok", "succeeded"), ("refused", "refused")];
        let piles = [pile("08:00", &[1200, 3]), pile("09:00", &[0, 0])];
        let drawn = Chart::new("Requests".to_owned(), legend.clone(), &piles).to_string();
        assert!(drawn.contains("<title>08:00: 1,200 succeeded, 3 refused</title>"), "{drawn}");
        assert_eq!(drawn.matches("<title>").count(), 2);
        // A chart without bars is valid.
        assert!(Chart::new("Requests".to_owned(), legend, &[]).to_string().contains("<svg"));
    }
}
