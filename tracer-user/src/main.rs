use std::process::ExitCode;

fn main() -> ExitCode {
    afterwrite::cli::main()
}
