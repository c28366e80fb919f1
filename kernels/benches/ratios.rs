//! What part of its floor does each kernel reach? A matrix of 4096 x 8192, 4 and 20 miners, one thread
//! and two, seed 7.
//!
//! `cargo bench -p gradledger-kernels --bench ratios`. Floors and kernels take turns, nine times over,
//! as `rates` says. It prints a table and writes a record below `benches/record/`.

#[path = "../../tools/record.rs"]
mod record;

use gradledger_kernels::rates::{Kernel, Lab};

const STRIPS: usize = 64;
const TURNS: usize = 9;

fn main() -> std::io::Result<()> {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let (one, two) = (pool(1).expect("a thread"), pool(2).expect("two threads"));
    let (mut lab, kernels) = (Lab::new(STRIPS)?, Kernel::all());
    let rates = one.install(|| lab.rates(&kernels, TURNS, &|| {}));
    let together = two.install(|| lab.together(TURNS));
    let rate = |of: Kernel| rates[kernels.iter().position(|&k| k == of).expect("it is run")];
    let mut values = Vec::new();
    for &kernel in &kernels {
        values.push((format!("rate/{kernel}"), rate(kernel) / 1e6, "M parameters/s"));
    }
    for &kernel in &kernels {
        let Some(floor) = kernel.floor() else { continue };
        values.push((format!("ratio/{kernel}/{floor}"), rate(kernel) / rate(floor), "1"));
    }
    let both = together.fold_hashed / together.hash;
    values.push(("ratio/two-threads-hashed/20/hash-of-both-cores".to_owned(), both, "1"));
    values.iter().for_each(|(what, value, unit)| println!("{value:10.3} {unit:15} {what}"));
    record::write("kernels", &values)
}
