// SPDX-License-Identifier: GPL-2.0

//! dmabuf-fuzz: a fuzzer of the user interfaces of dma-buf.
//!
//! It makes calls of dma-buf, dma-heap, udmabuf, sync_file, sw_sync, and those by which the drivers
//! in Rust share buffers, with arguments that are mostly right: descriptors that earlier calls made,
//! and sizes, flags, names, numbers of ioctls and pointers at their limits and beyond.
//!
//! Calls come in programs of thirty. What a program does depends on the seed and on the number of
//! the program, and on what its calls return, but on nothing that differs from boot to boot or from
//! kernel to kernel. At its end it closes all it has, so that each program can be run alone.
//!
//! With one thread, there is a log of each call: its number, its name, its arguments by name, what
//! it returned, and what there was to see; for each program the buffers and fences that it had at
//! its end, and how many descriptors and buffers it left behind. The logs of one seed are the same
//! for two kernels that behave the same:
//!
//! ```text
//! dmabuf-fuzz --seed 1 --calls 20000 --log rust.log    # with the core in Rust
//! dmabuf-fuzz --seed 1 --calls 20000 --log c.log       # with the core in C
//! diff rust.log c.log
//! dmabuf-fuzz --seed 1 --programs 17 --verbose         # only that of the first difference
//! ```
//!
//! With several threads, these share descriptors, and nothing is logged: the kernel's own log has
//! to be looked at.
//!
//! It needs root, debugfs, and the modules rust_dma_buf, dma_buf_test, rust_vivid and rust_vim2m for the calls
//! that are theirs. It takes no more than some tens of MiB of buffers for each thread: calls by
//! which the system heap would take all memory get no descriptor, see `takes_all_memory()`.
//!
//! * `sys.rs`: system calls, the only unsafe code
//! * `values.rs`: the generator, and values to try
//! * `world.rs`: what a program has, and how calls get arguments and are logged
//! * `calls.rs`, `v4l2.rs`: the calls

mod calls;
mod sys;
mod v4l2;
mod values;
mod world;

use calls::Call;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, process, thread};
use values::{errno_name, Hash};
use world::{Coverage, World};

const PROGRAM_LEN: u32 = 30;

const HELP: &str = "\
usage: dmabuf-fuzz [--seed S] [--calls N] [--threads N] [--seconds N]
                   [--programs A[-B]] [--only NAME]... [--log FILE] [--verbose] [--list]

  --seed S       choose the programs (1)
  --calls N      end with the program that makes the Nth call (10000)
  --threads N    share descriptors among N threads, and log nothing (1)
  --seconds N    end after so many seconds, whatever the number of calls
  --programs A-B run only these programs
  --only NAME    make only calls whose names begin like this, and those that they need
  --log FILE     put the log there instead of on standard output
  --verbose      name each call on standard error before it is made
  --list         list the names of calls
";

struct Options {
    seed: u64,
    calls: u64,
    threads: usize,
    deadline: Option<Duration>,
    programs: Option<(u64, u64)>,
    only: Vec<String>,
    log: Option<String>,
    verbose: bool,
}

fn usage(message: &str) -> ! {
    eprint!("dmabuf-fuzz: {message}\n{HELP}");
    process::exit(2);
}

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| usage(&format!("not a number: {text}")))
}

fn options() -> Options {
    let mut options = Options {
        seed: 1,
        calls: 10000,
        threads: 1,
        deadline: None,
        programs: None,
        only: Vec::new(),
        log: None,
        verbose: false,
    };
    let mut args = env::args().skip(1);

    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| usage("a value is missing"));

        match arg.as_str() {
            "--seed" => options.seed = number(&value()),
            "--calls" => options.calls = number(&value()),
            "--threads" => options.threads = number(&value()),
            "--seconds" => options.deadline = Some(Duration::from_secs(number(&value()))),
            "--programs" => {
                let text = value();
                let (first, last) = text.split_once('-').unwrap_or((&text, &text));

                options.programs = Some((number(first), number(last)));
            }
            "--only" => options.only.push(value()),
            "--log" => options.log = Some(value()),
            "--verbose" => options.verbose = true,
            "--list" => {
                calls::all().for_each(|call| println!("{}", call.name));
                process::exit(0);
            }
            "--help" => {
                print!("{HELP}");
                process::exit(0);
            }
            _ => usage(&format!("what is {arg}?")),
        }
    }
    if options.threads == 0 {
        usage("no thread would do nothing");
    }
    options
}

fn main() {
    let options = options();
    let wanted = |call: &&Call| {
        let only = &options.only;

        only.is_empty() || only.iter().any(|name| call.name.starts_with(name.as_str()))
    };
    let calls: Vec<_> = calls::all().filter(wanted).collect();

    if calls.is_empty() {
        usage("there are no such calls, see --list");
    }
    sys::set_name(c"dmabuf-fuzz");
    sys::init_signals();
    if world::count_buffers().is_none() {
        eprintln!("dmabuf-fuzz: cannot read {}", world::BUFINFO);
        process::exit(1);
    }

    // Most calls would fail without, and test less than it seems.
    let missing = world::missing();

    if !missing.is_empty() && options.only.is_empty() {
        eprintln!(
            "dmabuf-fuzz: cannot open {}; leave them out with --only",
            missing.join(", ")
        );
        process::exit(1);
    }

    let result = if options.threads == 1 {
        compared(&options, &calls)
    } else {
        threaded(&options, &calls)
    };

    if let Err(error) = result {
        eprintln!("dmabuf-fuzz: {error}");
        process::exit(1);
    }
}

/// Whether there is another program to run.
fn goes_on(options: &Options, start: Instant, program: u64, calls: u64) -> bool {
    let in_time = options.deadline.is_none_or(|time| start.elapsed() < time);

    in_time
        && match options.programs {
            Some((_, last)) => program <= last,
            None => calls < options.calls || options.threads > 1 && options.deadline.is_some(),
        }
}

/// One thread, and a log.
fn compared(options: &Options, calls: &[&'static Call]) -> io::Result<()> {
    let mut out: Box<dyn Write> = match &options.log {
        Some(path) => Box::new(File::create(path)?),
        None => Box::new(io::stdout()),
    };
    let mut world = World::new(None);
    let mut hash = Hash::new();
    let mut program = options.programs.map_or(0, |(first, _)| first);
    let start = Instant::now();

    world.verbose = options.verbose;
    while goes_on(options, start, program, world.calls) {
        world.run_program(options.seed, program, calls, PROGRAM_LEN);
        hash.add(world.log.as_bytes());
        out.write_all(world.log.as_bytes())?;
        world.log.clear();
        program += 1;
    }
    writeln!(out, "{} calls, hash {:016x}", world.calls, hash.0)?;

    println!("hash {:016x}", hash.0);
    summary(&world.coverage, world.calls, start.elapsed(), calls);
    println!("buffers that programs left behind: {}", world.lost);
    Ok(())
}

/// Several threads with descriptors in common.
fn threaded(options: &Options, calls: &[&'static Call]) -> io::Result<()> {
    let shared = Arc::new(std::array::from_fn(|_| AtomicU64::new(0)));
    let start = Instant::now();
    let before = world::count_buffers();
    let ids: Vec<_> = (0..options.threads).map(|_| AtomicI32::new(0)).collect();
    let work = |thread: u64| {
        ids[thread as usize].store(sys::thread_id(), Relaxed);

        let mut world = World::new(Some(Arc::clone(&shared)));
        let share = options.calls / options.threads as u64;
        let mut program = 0;

        while goes_on(options, start, program, world.calls)
            && (options.deadline.is_some() || world.calls < share)
        {
            world.run_program(options.seed, (program << 8) | thread, calls, PROGRAM_LEN);
            program += 1;
        }
        world.coverage
    };
    let mut coverage = Coverage::new();

    thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads as u64)
            .map(|number| {
                let work = &work;

                scope.spawn(move || work(number))
            })
            .collect();

        // Some wait for fences that nobody is going to signal.
        while threads.iter().any(|thread| !thread.is_finished()) {
            thread::sleep(Duration::from_millis(10));
            for id in &ids {
                sys::interrupt(id.load(Relaxed));
            }
        }
        for thread in threads {
            for (name, results) in thread.join().expect("a thread has died") {
                for (errno, count) in results {
                    *coverage.entry(name).or_default().entry(errno).or_default() += count;
                }
            }
        }
    });
    for entry in shared.iter() {
        world::close_shared(entry);
    }

    let total = coverage.values().flat_map(|results| results.values()).sum();

    summary(&coverage, total, start.elapsed(), calls);
    println!(
        "survived; buffers before {before:?}, after {:?}",
        world::count_buffers()
    );
    Ok(())
}

/// How often each kind of call had which result, and what is never seen.
fn summary(coverage: &Coverage, calls: u64, time: Duration, wanted: &[&'static Call]) {
    let rate = calls as f64 / time.as_secs_f64();

    println!(
        "{calls} calls in {:.1} s, {rate:.0} calls/s",
        time.as_secs_f64()
    );
    for (name, results) in coverage {
        let text: Vec<_> = results
            .iter()
            .map(|(errno, count)| match errno {
                0 => format!("ok {count}"),
                _ => format!("{} {count}", errno_name(*errno)),
            })
            .collect();

        println!("{name:18} {}", text.join(", "));
    }

    let names: BTreeSet<_> = wanted.iter().map(|call| call.name).collect();
    let list = |title: &str, test: &dyn Fn(&str) -> bool| {
        let found: Vec<_> = names.iter().filter(|name| test(name)).copied().collect();

        println!(
            "{title}: {}",
            if found.is_empty() {
                "none".into()
            } else {
                found.join(" ")
            }
        );
    };
    let has = |name: &str, ok: bool| {
        coverage
            .get(name)
            .is_some_and(|results| results.keys().any(|errno| (*errno == 0) == ok))
    };

    list("never made", &|name| !coverage.contains_key(name));
    list("never succeeded", &|name| !has(name, true));
    list("never failed", &|name| !has(name, false));
}
