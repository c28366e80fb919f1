//! The run as a picture: loss, what was refused, norms and shares, round by round.

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    miners::CHEAT,
    report::DemoReport,
    run::{ROUNDS, RoundLine},
};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

const WIDTH: u32 = 1000;
const HEIGHT: u32 = 1115;
const FONT: &str = "DejaVu Sans, Helvetica, Arial, sans-serif";

/// Room for what stands left of an axis, and right of a panel.
const LEFT: u32 = 70;
const RIGHT: u32 = 110;

const INK: RGBColor = RGBColor(45, 52, 64);
const PALE: RGBColor = RGBColor(226, 230, 236);
const GREY: RGBColor = RGBColor(118, 126, 140);
const LOSS: RGBColor = RGBColor(38, 70, 130);

/// Wong's colours, which the colour-blind tell apart (Nature Methods 8, 441): a miner each.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
];
const RED: RGBColor = RGBColor(200, 40, 40);

/// The picture as SVG.
pub fn plot(report: &DemoReport) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        let (title, rest) = root.split_vertically(84);
        let (losses, rest) = rest.split_vertically(350);
        let (refused, rest) = rest.split_vertically(80);
        let (norms, shares) = rest.split_vertically(285);
        head(&title, report)?;
        loss_panel(&losses, report)?;
        refused_band(&refused, report)?;
        norm_panel(&norms, report)?;
        share_panel(&shares, report)?;
        root.present()?;
    }
    Ok(svg)
}

fn words(size: u32, colour: RGBColor, h: HPos) -> TextStyle<'static> {
    (FONT, size).into_font().color(&colour).pos(Pos::new(h, VPos::Center))
}

fn head(area: &Area<'_>, report: &DemoReport) -> Drawn {
    let (miners, rounds) = (report.miners.len() - 1, report.rounds.len());
    let title = format!("{miners} miners, {rounds} rounds, one ledger");
    area.draw_text(&title, &words(30, INK, HPos::Left), (LEFT as i32, 28))?;
    let (first, last) = (report.loss_first, report.loss_last);
    let below = format!(
        "{} weights, loss {first:.2} to {last:.2}; {} tricks refused, {} copy seen",
        report.parameters,
        report.refusals.len(),
        report.copies.len()
    );
    area.draw_text(&below, &words(17, GREY, HPos::Left), (LEFT as i32, 56))?;
    Ok(())
}

fn caption(area: &Area<'_>, text: &str) -> Drawn {
    area.draw_text(text, &words(18, INK, HPos::Left), (LEFT as i32, 14))?;
    Ok(())
}

/// A panel with the rounds along its foot and values from 0 to `top`.
macro_rules! panel {
    ($area:expr, $top:expr, $digits:expr) => {{
        let mut chart = ChartBuilder::on($area)
            .margin_top(30)
            .margin_right(RIGHT)
            .x_label_area_size(28)
            .y_label_area_size(LEFT)
            .build_cartesian_2d(-0.5..ROUNDS as f64 + 0.5, 0.0..$top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(PALE)
            .axis_style(PALE)
            .x_labels(ROUNDS as usize + 1)
            .y_labels(6)
            .x_label_formatter(&|x| round_name(*x))
            .y_label_formatter(&|y| format!("{y:.*}", $digits))
            .label_style(words(15, GREY, HPos::Center))
            .draw()?;
        chart
    }};
}

/// What stands below a column.
fn round_name(x: f64) -> String {
    if x < 0.5 { "start".to_owned() } else { format!("{x:.0}") }
}

fn loss_panel(area: &Area<'_>, report: &DemoReport) -> Drawn {
    caption(area, "loss: mean surprise at the next byte, in nats")?;
    let top = report.loss_first * 1.1;
    let mut chart = panel!(area, top, 1);
    let rounds = report.rounds.iter().map(|line| (line.round as f64, line.loss));
    let points: Vec<(f64, f64)> = [(0.0, report.loss_first)].into_iter().chain(rounds).collect();
    let foot = [(ROUNDS as f64, 0.0), (0.0, 0.0)];
    let below: Vec<(f64, f64)> = points.iter().copied().chain(foot).collect();
    chart.draw_series([Polygon::new(below, LOSS.mix(0.08))])?;
    chart.draw_series(LineSeries::new(points.iter().copied(), LOSS.stroke_width(3)))?;
    chart.draw_series(points.iter().map(|&at| Circle::new(at, 4, LOSS.filled())))?;
    let label = |&(x, y): &(f64, f64)| {
        let style = words(14, INK, HPos::Center);
        Text::new(format!("{y:.2}"), (x + 0.12, y + top * 0.055), style)
    };
    chart.draw_series(points.iter().map(label))?;
    Ok(())
}

/// The middle of a round's column, in pixels from the left.
fn column(round: u64) -> i32 {
    let width = f64::from(WIDTH - LEFT - RIGHT);
    let column = (round as f64 + 0.5) / (ROUNDS as f64 + 1.0);
    LEFT as i32 + (column * width).round() as i32
}

/// A cross and the code of what was refused in each round.
fn refused_band(area: &Area<'_>, report: &DemoReport) -> Drawn {
    let name = words(15, GREY, HPos::Right);
    area.draw_text("refused", &name, (LEFT as i32 - 8, 16))?;
    let rounds = words(15, GREY, HPos::Left);
    area.draw_text("round", &rounds, ((WIDTH - RIGHT) as i32 + 8, -13))?;
    for refusal in &report.refusals {
        let x = column(refusal.round);
        area.draw(&Cross::new((x, 16), 6, RED.stroke_width(3)))?;
        for (line, part) in (0..).zip(two_lines(refusal.code.as_str())) {
            area.draw_text(&part, &words(13, RED, HPos::Center), (x, 36 + 15 * line))?;
        }
    }
    for copy in &report.copies {
        let x = column(copy.round);
        area.draw(&Circle::new((x, 16), 6, COLOURS[5].stroke_width(3)))?;
        for (line, part) in (0..).zip(["copy,", "counted"]) {
            area.draw_text(part, &words(13, COLOURS[5], HPos::Center), (x, 36 + 15 * line))?;
        }
    }
    Ok(())
}

/// A code cut at the hyphen nearest to its middle.
fn two_lines(code: &str) -> Vec<String> {
    let middle = |at: &usize| (2 * at).abs_diff(code.len());
    match code.match_indices('-').map(|(at, _)| at).min_by_key(middle) {
        Some(at) => vec![code[..=at].to_owned(), code[at + 1..].to_owned()],
        None => vec![code.to_owned()],
    }
}

fn of_miner(rounds: &[RoundLine], name: &str) -> Vec<(f64, f64)> {
    let line = |round: &RoundLine| {
        let found = round.contributions.iter().find(|line| line.miner == name)?;
        Some((round.round as f64, found.norm))
    };
    rounds.iter().filter_map(line).collect()
}

fn norm_panel(area: &Area<'_>, report: &DemoReport) -> Drawn {
    caption(area, "norm of what each miner sent")?;
    let norms = report.rounds.iter().flat_map(|round| &round.contributions).map(|line| line.norm);
    let top = norms.fold(0.0, f64::max) * 1.1;
    let mut chart = panel!(area, top, 0);
    for (miner, colour) in report.miners.iter().zip(COLOURS) {
        let points = of_miner(&report.rounds, miner.name);
        chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        let size = if miner.name == CHEAT { 6 } else { 3 };
        chart.draw_series(points.iter().map(|&at| Circle::new(at, size, colour.filled())))?;
    }
    legend(area, report)
}

/// Names in their colours, right of a panel.
fn legend(area: &Area<'_>, report: &DemoReport) -> Drawn {
    let left = (WIDTH - RIGHT) as i32 + 16;
    for ((miner, colour), at) in report.miners.iter().zip(COLOURS).zip(0..) {
        let y = 44 + 24 * at;
        area.draw(&Rectangle::new([(left, y - 6), (left + 12, y + 6)], colour.filled()))?;
        area.draw_text(miner.name, &words(15, INK, HPos::Left), (left + 20, y))?;
    }
    Ok(())
}

fn share_panel(area: &Area<'_>, report: &DemoReport) -> Drawn {
    caption(area, "contributions: share of what was folded, in percent")?;
    let mut chart = panel!(area, 100.0, 0);
    for round in &report.rounds {
        let (x, mut foot) = (round.round as f64, 0.0);
        for (miner, colour) in report.miners.iter().zip(COLOURS) {
            let Some(line) = round.contributions.iter().find(|line| line.miner == miner.name)
            else {
                continue;
            };
            let head = foot + 100.0 * line.share;
            let bar = [(x - 0.36, foot), (x + 0.36, head)];
            chart.draw_series([Rectangle::new(bar, colour.filled())])?;
            chart.draw_series([Rectangle::new(bar, WHITE.stroke_width(1))])?;
            foot = head;
        }
    }
    legend(area, report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_cut_near_their_middle() {
        assert_eq!(two_lines("code-out-of-range"), ["code-out-", "of-range"]);
        assert_eq!(two_lines("duplicate-delta"), ["duplicate-", "delta"]);
        assert_eq!(two_lines("truncated"), ["truncated"]);
    }
}
