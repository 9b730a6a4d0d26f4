//! Tests with a machine's clock, and readings of a server's clock that may change.

use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use proptest::prelude::*;
use time::macros::datetime;

use super::*;

const START: OffsetDateTime = datetime!(2026-06-15 12:00 UTC);
const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3600 * SECOND;

/// A machine, and a server that it reads. All times are in microseconds.
#[derive(Default)]
struct Machine {
    passed: AtomicI64,
    /// The time by which the clock of the machine is ahead.
    ahead: AtomicI64,
}

impl Clock for Machine {
    fn now(&self) -> OffsetDateTime {
        at(self.passed.load(SeqCst) + self.ahead.load(SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.passed.load(SeqCst).unsigned_abs())
    }
}

fn at(since_start: i64) -> OffsetDateTime {
    START + time::Duration::microseconds(since_start)
}

struct World {
    machine: Arc<Machine>,
    clock: DatabaseClock,
    /// The time by which the clock of the server is ahead.
    server_ahead: i64,
    epoch: ClockEpoch,
}

impl World {
    fn new(machine_ahead: i64) -> Self {
        let machine = Arc::new(Machine::default());
        machine.ahead.store(machine_ahead, SeqCst);
        let clock = DatabaseClock::new(machine.clone());
        let epoch = ClockEpoch { number: 0, started_at: START };
        Self { machine, clock, server_ahead: 0, epoch }
    }

    fn pass(&self, micros: i64) {
        self.machine.passed.fetch_add(micros, SeqCst);
    }

    fn server_time(&self) -> OffsetDateTime {
        at(self.machine.passed.load(SeqCst) + self.server_ahead)
    }

    /// Reads the clock of the server; the query and its answer take this long.
    fn read(&self, query: i64, answer: i64) -> ClockReading {
        let sent_at = self.machine.monotonic();
        self.pass(query);
        let time = self.server_time();
        self.pass(answer);
        let received_at = self.machine.monotonic();
        ClockReading { time, epoch: Some(self.epoch), sent_at, received_at }
    }

    /// Reads the clock as a node does: after a change it begins an epoch.
    fn synchronize(&mut self) -> bool {
        let reading = self.read(1000, 1000);
        if self.clock.observe(reading) == ClockObservation::Continuous {
            return false;
        }
        self.epoch = ClockEpoch { number: self.epoch.number + 1, started_at: self.server_time() };
        let reading = self.read(0, 0);
        self.clock.restart(reading);
        true
    }

    fn error(&self) -> i64 {
        micros(self.clock.now() - self.server_time()).abs()
    }
}

#[test]
fn clock_before_first_reading_is_that_of_the_machine() {
    let world = World::new(HOUR);
    assert_eq!(world.clock.now(), at(HOUR));
    assert_eq!(world.clock.skew(), time::Duration::ZERO);
    assert_eq!(world.clock.epoch().unwrap().number, -1, "no epoch of PostgreSQL");
}

#[test]
fn clock_follows_the_server_on_machine_with_wrong_clock() {
    for ahead in [0, HOUR, -HOUR, 10 * SECOND] {
        let mut world = World::new(ahead);
        assert!(!world.synchronize());
        assert!(world.error() <= 1000, "{ahead}");
        world.pass(SECOND);
        assert!(world.error() <= 1000, "{ahead}");
        assert_eq!(world.clock.skew().whole_seconds(), ahead / SECOND);
        // The clock of the machine is set. That changes nothing.
        world.machine.ahead.fetch_add(HOUR, SeqCst);
        assert!(!world.synchronize());
        assert!(world.error() <= 1000, "{ahead}");
    }
}

#[test]
fn slow_answers_move_the_clock_no_further_than_they_prove() {
    let mut world = World::new(0);
    world.synchronize();
    let before = world.clock.now();
    let reading = world.read(3 * SECOND, 0);
    assert_eq!(world.clock.observe(reading), ClockObservation::Continuous);
    let reading = world.read(0, 3 * SECOND);
    assert_eq!(world.clock.observe(reading), ClockObservation::Continuous);
    assert_eq!(micros(world.clock.now() - before), 6 * SECOND);
}

#[test]
fn slow_first_answer_is_corrected_without_a_new_epoch() {
    let mut world = World::new(0);
    let reading = world.read(5 * SECOND, 0);
    assert_eq!(world.clock.observe(reading), ClockObservation::Continuous);
    assert!(world.error() > SECOND);
    assert!(!world.synchronize());
    assert!(world.error() <= 5000);
}

#[test]
fn change_of_the_server_begins_an_epoch_before_its_time_is_used() {
    for step in [HOUR, -HOUR, 10 * SECOND, -10 * SECOND, 1_100_000, -1_100_000] {
        let mut world = World::new(0);
        world.synchronize();
        world.pass(SECOND);
        world.server_ahead += step;
        let reading = world.read(1000, 1000);
        let observed = world.clock.observe(reading);
        let ClockObservation::Changed(by) = observed else { panic!("{step}: {observed:?}") };
        assert!((micros(by) - step).abs() <= 5000, "{step}: {by}");
        assert!((world.error() - step.abs()).abs() <= 2000, "{step}: the old time");
        assert!(world.synchronize(), "{step}");
        assert!(world.error() <= 1000, "{step}");
        assert_eq!(world.clock.epoch(), Some(world.epoch));
        assert!(!world.synchronize(), "{step}: once");
    }
}

#[test]
fn small_corrections_that_add_up_begin_an_epoch() {
    let mut world = World::new(0);
    world.synchronize();
    let epochs = (0..100).filter(|_| {
        world.pass(2 * SECOND);
        world.server_ahead += SECOND / 5;
        world.synchronize()
    });
    let epochs = epochs.count();
    assert!((10..=20).contains(&epochs), "{epochs} epochs in 20 s of corrections");
    // As NTP corrects a clock.
    for _ in 0..10_000 {
        world.pass(2 * SECOND);
        world.server_ahead += SECOND / 1000;
        assert!(!world.synchronize());
    }
    assert!(world.error() <= 10_000);
}

#[test]
fn change_that_only_another_node_noticed_begins_an_epoch() {
    for step in [HOUR, -HOUR, 10 * SECOND, -10 * SECOND] {
        let mut world = World::new(0);
        world.synchronize();
        world.pass(SECOND);
        world.server_ahead += step;
        world.epoch = ClockEpoch { number: 1, started_at: world.server_time() };
        world.server_ahead -= step;
        assert!(world.synchronize(), "{step}");
    }
    // The monotonic clock of another node was wrong.
    let mut world = World::new(0);
    world.synchronize();
    world.pass(SECOND);
    world.epoch = ClockEpoch { number: 1, started_at: world.server_time() };
    world.pass(SECOND);
    assert!(!world.synchronize());
    assert_eq!(world.clock.epoch(), Some(world.epoch));
}

#[test]
fn epoch_that_a_failover_lost_is_replaced() {
    let mut world = World::new(0);
    world.synchronize();
    let first = world.epoch;
    world.pass(HOUR);
    world.server_ahead += HOUR;
    assert!(world.synchronize());
    world.pass(SECOND);
    // The clock of the other server agrees with that of the first one.
    world.epoch = first;
    let before = world.clock.now();
    assert!(world.synchronize());
    assert!(world.clock.epoch().unwrap().started_at >= before);
}

#[test]
fn answer_that_arrives_after_a_later_one_is_ignored() {
    let mut world = World::new(0);
    world.synchronize();
    let old = world.read(1000, 1000);
    world.pass(SECOND);
    world.server_ahead += HOUR;
    assert!(world.synchronize());
    assert_eq!(world.clock.observe(old), ClockObservation::Continuous);
    world.clock.restart(old);
    assert!(world.error() <= 1000);
}

#[test]
fn elapsed_time_counts_from_the_last_change() {
    let mut world = World::new(0);
    world.synchronize();
    for step in [HOUR, -HOUR, 10 * SECOND, -10 * SECOND] {
        world.pass(HOUR);
        let stored = world.clock.now();
        let elapsed = |world: &World| whole_micros(world.clock.elapsed_since(stored));
        world.pass(2 * SECOND);
        assert_eq!(elapsed(&world), 2 * SECOND);
        world.server_ahead += step;
        assert!(world.synchronize());
        assert!(elapsed(&world) <= 1000, "{step}: {}", elapsed(&world));
        world.pass(5 * SECOND);
        assert!((elapsed(&world) - 5 * SECOND).abs() <= 1000, "{step}: {}", elapsed(&world));
    }
}

#[test]
fn time_of_another_node_just_ahead_has_not_passed() {
    let mut world = World::new(0);
    world.synchronize();
    world.pass(HOUR);
    let ahead = world.clock.now() + Duration::from_millis(500);
    assert_eq!(world.clock.elapsed_since(ahead), Duration::ZERO);
}

proptest! {
    #[test]
    fn clock_is_right_within_a_round_trip(
        ahead in -2 * HOUR..2 * HOUR,
        trips in prop::collection::vec((0_i64..200_000, 0_i64..200_000, 0..5 * SECOND), 1..50),
    ) {
        let world = World::new(ahead);
        for (query, answer, pause) in trips {
            let reading = world.read(query, answer);
            prop_assert_eq!(world.clock.observe(reading), ClockObservation::Continuous);
            prop_assert!(world.error() <= query + answer);
            world.pass(pause);
            prop_assert!(world.error() <= query + answer);
        }
    }
}
