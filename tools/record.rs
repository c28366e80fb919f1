//! Records of benches: one CSV file a bench, day and machine below `benches/record/`.

use std::{fs, io, path::Path, process::Command, thread};

/// Writes `BENCH-DATE-MACHINE.csv`: a line a value, with its name below `BENCH/` and its unit.
pub fn write(bench: &str, values: &[(String, f64, &str)]) -> io::Result<()> {
    let (date, commit, machine) =
        (said(&["date", "+%F"]), said(&["git", "rev-parse", "--short", "HEAD"]), machine());
    let name: String = machine.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    // The kernels are a package of their own, one directory down.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = if here.ends_with("kernels") { here.parent().unwrap_or(here) } else { here };
    let path =
        root.join("benches/record").join(format!("{bench}-{date}-{}.csv", name.to_lowercase()));
    let mut text = "date,commit,machine,bench,median,unit\n".to_owned();
    for (what, value, unit) in values {
        text += &format!("{date},{commit},{machine},{bench}/{what},{value:.3},{unit}\n");
    }
    fs::write(&path, text)?;
    eprintln!("recorded in {}", path.display());
    Ok(())
}

/// The processor's name and how many cores there are.
fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let name = name.map_or("unknown", |(_, name)| name).replace("(R)", "");
    let cores = thread::available_parallelism().map_or(1, usize::from);
    format!("{} {cores} cores", name.replace(',', " "))
}

/// The first line that a command prints.
fn said(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}
