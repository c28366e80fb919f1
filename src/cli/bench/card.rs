//! A card beside what it can copy.

use std::fmt::Write as _;

use gradledger_kernels::cuda::rates::{ROUNDS, Rates, measure};
use serde::Serialize;

use crate::cli::{
    device,
    exit::CliError,
    output::{print, size},
};

#[derive(Serialize)]
struct Report {
    device: String,
    name: String,
    driver: String,
    nvrtc: String,
    architecture: String,
    state_bytes: u64,
    rates: Vec<Line>,
}

/// A rate, and what of its ceiling it is.
#[derive(Serialize)]
struct Line {
    what: String,
    bytes_per_s: f64,
    ceiling: Option<&'static str>,
    ratio: Option<f64>,
}

pub fn bench(ordinal: usize, gib: f64, json: bool) -> Result<(), CliError> {
    let gpu = device::open(ordinal)?;
    let rates = measure(gpu, (gib * (1u64 << 30) as f64) as u64)?;
    let card = gpu.description();
    let report = Report {
        device: format!("cuda:{ordinal}"),
        name: card.name.clone(),
        driver: card.driver.clone(),
        nvrtc: card.nvrtc.clone(),
        architecture: card.architecture.clone(),
        state_bytes: rates.state_bytes,
        rates: lines(&rates),
    };
    print(json, &report, || text(&report))
}

fn lines(rates: &Rates) -> Vec<Line> {
    let line = |what: &str, bytes_per_s, over: Option<(&'static str, f64)>| Line {
        what: what.to_owned(),
        bytes_per_s,
        ceiling: over.map(|(ceiling, _)| ceiling),
        ratio: over.map(|(_, ceiling)| bytes_per_s / ceiling),
    };
    let ten = format!("{ROUNDS} rounds resident, folded and hashed, state times rounds");
    vec![
        line("copy, host to card", rates.to_card, None),
        line("copy, card to host", rates.to_host, None),
        line("copy, on the card, read and written", rates.copy, None),
        line(
            "fold, 20 miners, read and written",
            rates.fold,
            Some(("copy on the card", rates.copy)),
        ),
        line("hash of pieces", rates.hash, Some(("0.4 TB/s", 0.4e12))),
        line(
            "one round from the host and back",
            rates.single,
            Some(("the bus", rates.single_at_most)),
        ),
        line(&ten, rates.resident, Some(("one round from the host", rates.single))),
    ]
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "{}: {}, driver for CUDA {}, kernels by NVRTC {} for {}; a state of {}\n\n{:<62}{:>8}   of its ceiling\n",
        report.device,
        report.name,
        report.driver,
        report.nvrtc,
        report.architecture,
        size(report.state_bytes),
        "",
        "GB/s",
    );
    for line in &report.rates {
        let over = match (line.ratio, line.ceiling) {
            (Some(ratio), Some(ceiling)) => format!("{ratio:>7.2} {ceiling}"),
            _ => String::new(),
        };
        let _ = writeln!(text, "  {:<60}{:>8.1}   {over}", line.what, line.bytes_per_s / 1e9);
    }
    text
}
