//! The machine of the measurements, and the command that repeats them.

use std::{fs, process::Command};

use crate::{environment::BenchEnvironment, options::Options};

/// Prints the machine and the command.
pub(crate) async fn describe(options: &Options, world: &BenchEnvironment) -> Result<(), String> {
    let mut connection = world.connect("main").await?;
    let version: String = sqlx::query_scalar("SHOW server_version")
        .fetch_one(&mut connection)
        .await
        .map_err(|error| error.to_string())?;
    let fsync: String = sqlx::query_scalar("SHOW fsync")
        .fetch_one(&mut connection)
        .await
        .map_err(|error| error.to_string())?;
    let sockets: String = sqlx::query_scalar("SHOW unix_socket_directories")
        .fetch_one(&mut connection)
        .await
        .map_err(|error| error.to_string())?;
    let connection_type = if sockets.is_empty() { "TCP on 127.0.0.1" } else { "a Unix socket" };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("- machine: {cores} cores, {}, {}", processor(), memory());
    println!("- kernel: Linux {}", first_line("/proc/sys/kernel/osrelease"));
    println!("- load average before: {}", first_line("/proc/loadavg"));
    println!("- PostgreSQL {version}, fsync {fsync}, over {connection_type}");
    println!("- {}; {}; {}", tool("rustc", "-V"), tool("nginx", "-v"), tool("wrk", "-v"));
    println!("- commit: {}", tool("git", "describe --always --dirty"));
    if options.binary.is_some() {
        println!("- service: {}", world.binary.display());
    }
    if !options.includes_only_attacks() {
        println!(
            "- load: wrk with 1 thread and 48 connections (8 to sign in), {} rounds of {} s for each \
             row, interleaved; medians",
            options.rounds(),
            options.seconds()
        );
    }
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    println!("- repeat: ./scripts/bench {}", arguments.join(" "));
    Ok(())
}

fn first_line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or("an unknown processor", |(_, name)| name.trim()).to_owned()
}

fn memory() -> String {
    let kilobytes = first_line("/proc/meminfo");
    let kilobytes = kilobytes.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
    kilobytes.map_or("memory unknown".to_owned(), |kb| format!("{} GiB of memory", kb >> 20))
}

/// Returns the first line that a program prints.
fn tool(program: &str, argument: &str) -> String {
    let Ok(output) = Command::new(program).args(argument.split(' ')).output() else {
        return format!("{program} unknown");
    };
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned()
}
