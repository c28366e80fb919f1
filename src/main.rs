//! The `gradledger` command.

fn main() -> std::process::ExitCode {
    gradledger::cli::main()
}
