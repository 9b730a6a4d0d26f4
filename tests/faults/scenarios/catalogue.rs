//! All scenarios, in the order of the tables.

use std::{path::Path, pin::Pin};

use super::{
    Backup, Damage, Figures, IdleEnd, Nodes, OldPrimary, Outage, PatroniFault, PoolMode, Pooler,
    ReadOnlyTarget, Scale, find_libfaketime, run_with_cut_off_node, run_with_damage,
    run_with_few_descriptors, run_with_idle_connections, run_with_killed_node,
    run_with_lost_generation, run_with_outage, run_with_patroni, run_with_pooler,
    run_with_promotions, run_with_read_only_spell, run_with_restore, run_with_several_hosts,
    run_with_skewed_node, run_with_slow_readers, run_with_split_brain, run_with_switchover,
};
use crate::faults::fixture::PatroniCluster;

type ScenarioFuture = Pin<Box<dyn Future<Output = Figures>>>;

/// A scenario of the tables.
pub struct Scenario {
    /// The name on the command line.
    pub name: &'static str,
    /// The heading of its table.
    pub table: &'static str,
    /// Programs or a library that not every machine has.
    requires: Option<Requirement>,
    pub start: fn(Scale) -> ScenarioFuture,
}

#[derive(Clone, Copy)]
enum Requirement {
    Libfaketime,
    Pgbouncer,
    Patroni,
}

impl Scenario {
    /// Returns one line that names the missing packages, if the scenario cannot run.
    pub fn missing(&self) -> Option<String> {
        let is_missing = |program: &str| !Path::new(program).exists();
        let packages = match self.requires? {
            Requirement::Libfaketime if find_libfaketime().is_none() => "libfaketime".to_owned(),
            Requirement::Pgbouncer if is_missing(Pooler::PROGRAM) => "pgbouncer".to_owned(),
            Requirement::Libfaketime | Requirement::Pgbouncer => return None,
            Requirement::Patroni => {
                let programs = PatroniCluster::PROGRAMS.into_iter();
                let missing = programs.filter(|(_, program)| is_missing(program));
                let packages: Vec<_> = missing.map(|(package, _)| package).collect();
                packages.join(" ")
            }
        };
        let name = self.name;
        (!packages.is_empty())
            .then(|| format!("{name} was NOT RUN: missing; as root: apt-get install {packages}"))
    }
}

const HOUR: i32 = 3600;

const FAILOVER: &str = "PostgreSQL changes its server";
const CLOCKS: &str = "Clocks";
const RESTORE: &str = "Restore to before a revocation";
const DATABASE: &str = "PostgreSQL refuses or loses connections, rights and tables";
const RESOURCES: &str = "Resources";

const fn scenario(
    table: &'static str,
    name: &'static str,
    start: fn(Scale) -> ScenarioFuture,
) -> Scenario {
    Scenario { name, table, requires: None, start }
}

const fn scenario_with(
    requires: Requirement,
    table: &'static str,
    name: &'static str,
    start: fn(Scale) -> ScenarioFuture,
) -> Scenario {
    Scenario { name, table, requires: Some(requires), start }
}

/// Returns all scenarios.
pub fn scenarios() -> Vec<Scenario> {
    [
        failover_scenarios(),
        clock_scenarios(),
        restore_scenarios(),
        database_scenarios(),
        resource_scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn failover_scenarios() -> Vec<Scenario> {
    vec![
        scenario(FAILOVER, "switchover-read-only", |scale| {
            Box::pin(run_with_switchover(OldPrimary::ReadOnly, scale))
        }),
        scenario(FAILOVER, "switchover-cut-off", |scale| {
            Box::pin(run_with_switchover(OldPrimary::CutOff, scale))
        }),
        scenario(FAILOVER, "promotion-synchronous", |scale| {
            Box::pin(run_with_promotions(true, scale))
        }),
        scenario(FAILOVER, "promotion-asynchronous", |scale| {
            Box::pin(run_with_promotions(false, scale))
        }),
        scenario(FAILOVER, "lost-generation", |scale| Box::pin(run_with_lost_generation(scale))),
        scenario(FAILOVER, "split-brain-synchronous", |scale| {
            Box::pin(run_with_split_brain(true, scale))
        }),
        scenario(FAILOVER, "split-brain-asynchronous", |scale| {
            Box::pin(run_with_split_brain(false, scale))
        }),
        scenario(FAILOVER, "split-brain-several-hosts", |scale| {
            Box::pin(run_with_several_hosts(scale))
        }),
        scenario_with(Requirement::Patroni, FAILOVER, "patroni-switchover", |scale| {
            Box::pin(run_with_patroni(PatroniFault::Switchover, scale))
        }),
        scenario_with(Requirement::Patroni, FAILOVER, "patroni-failover", |scale| {
            Box::pin(run_with_patroni(PatroniFault::Failover, scale))
        }),
        scenario_with(Requirement::Patroni, FAILOVER, "patroni-killed", |scale| {
            Box::pin(run_with_patroni(PatroniFault::PatroniKilled, scale))
        }),
    ]
}

fn clock_scenarios() -> Vec<Scenario> {
    vec![
        scenario_with(Requirement::Libfaketime, CLOCKS, "database-clock-ahead", |scale| {
            Box::pin(run_with_cut_off_node(HOUR, scale))
        }),
        scenario_with(Requirement::Libfaketime, CLOCKS, "database-clock-steps", |scale| {
            Box::pin(run_with_cut_off_node(10, scale))
        }),
        scenario_with(Requirement::Libfaketime, CLOCKS, "database-clock-steps-back", |scale| {
            Box::pin(run_with_cut_off_node(-10, scale))
        }),
        scenario_with(Requirement::Libfaketime, CLOCKS, "database-clock-behind", |scale| {
            Box::pin(run_with_killed_node(-HOUR, scale))
        }),
        scenario_with(Requirement::Libfaketime, CLOCKS, "node-clock-ahead", |scale| {
            Box::pin(run_with_skewed_node(HOUR, scale))
        }),
        scenario_with(Requirement::Libfaketime, CLOCKS, "node-clock-behind", |scale| {
            Box::pin(run_with_skewed_node(-HOUR, scale))
        }),
    ]
}

fn restore_scenarios() -> Vec<Scenario> {
    vec![
        scenario(RESTORE, "restore-dump-running", |scale| {
            Box::pin(run_with_restore(Backup::Dump, Nodes::Running, scale))
        }),
        scenario(RESTORE, "restore-dump-restarted", |scale| {
            Box::pin(run_with_restore(Backup::Dump, Nodes::Restarted, scale))
        }),
        scenario(RESTORE, "restore-base-running", |scale| {
            Box::pin(run_with_restore(Backup::BaseOnNewTimeline, Nodes::Running, scale))
        }),
        scenario(RESTORE, "restore-base-restarted", |scale| {
            Box::pin(run_with_restore(Backup::BaseOnNewTimeline, Nodes::Restarted, scale))
        }),
        scenario(RESTORE, "restore-base-as-is-running", |scale| {
            Box::pin(run_with_restore(Backup::BaseOnSameTimeline, Nodes::Running, scale))
        }),
        scenario(RESTORE, "restore-base-as-is-restarted", |scale| {
            Box::pin(run_with_restore(Backup::BaseOnSameTimeline, Nodes::Restarted, scale))
        }),
    ]
}

fn database_scenarios() -> Vec<Scenario> {
    vec![
        scenario(DATABASE, "read-only-database", |scale| {
            Box::pin(run_with_read_only_spell(ReadOnlyTarget::Database, scale))
        }),
        scenario(DATABASE, "read-only-role", |scale| {
            Box::pin(run_with_read_only_spell(ReadOnlyTarget::Role, scale))
        }),
        scenario(DATABASE, "missing-right", |scale| {
            Box::pin(run_with_damage(Damage::Right, scale))
        }),
        scenario(DATABASE, "missing-event-table", |scale| {
            Box::pin(run_with_damage(Damage::EventTable, scale))
        }),
        scenario(DATABASE, "missing-function", |scale| {
            Box::pin(run_with_damage(Damage::Function, scale))
        }),
        scenario(DATABASE, "missing-key-table", |scale| {
            Box::pin(run_with_damage(Damage::KeyTable, scale))
        }),
        scenario(DATABASE, "postgresql-killed", |scale| {
            Box::pin(run_with_outage(Outage::Killed, scale))
        }),
        scenario(DATABASE, "connections-terminated", |scale| {
            Box::pin(run_with_outage(Outage::Terminated, scale))
        }),
        scenario(DATABASE, "table-locked", |scale| {
            Box::pin(run_with_outage(Outage::LockedTable, scale))
        }),
        scenario(DATABASE, "node-suspended", |scale| {
            Box::pin(run_with_outage(Outage::SuspendedNode, scale))
        }),
        scenario(DATABASE, "idle-timeout", |scale| {
            Box::pin(run_with_idle_connections(IdleEnd::SessionTimeout(1500), scale))
        }),
        scenario(DATABASE, "idle-timeout-short", |scale| {
            Box::pin(run_with_idle_connections(IdleEnd::SessionTimeout(500), scale))
        }),
        scenario(DATABASE, "idle-proxy", |scale| {
            Box::pin(run_with_idle_connections(IdleEnd::Proxy, scale))
        }),
        scenario_with(Requirement::Pgbouncer, DATABASE, "pooler-session", |scale| {
            Box::pin(run_with_pooler(PoolMode::Session, scale))
        }),
        scenario_with(Requirement::Pgbouncer, DATABASE, "pooler-transaction", |scale| {
            Box::pin(run_with_pooler(PoolMode::Transaction, scale))
        }),
    ]
}

fn resource_scenarios() -> Vec<Scenario> {
    vec![
        scenario(RESOURCES, "few-descriptors", |scale| Box::pin(run_with_few_descriptors(scale))),
        scenario(RESOURCES, "slow-readers-openapi", |scale| {
            Box::pin(run_with_slow_readers("/openapi.json", scale))
        }),
        scenario(RESOURCES, "slow-readers-docs", |scale| {
            Box::pin(run_with_slow_readers("/docs/swagger-ui-bundle.js", scale))
        }),
    ]
}
