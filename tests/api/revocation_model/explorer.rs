//! Explores the states of a model: all of them in breadth, or those on random paths.

use std::{
    collections::HashSet,
    fmt::Write as _,
    hash::{BuildHasherDefault, Hasher},
};

use super::{
    action::Action,
    model::{Model, Violation},
    state::State,
};

/// The steps that lead to a violation.
pub struct Counterexample {
    pub steps: Vec<Action>,
    pub violation: Violation,
}

impl Counterexample {
    /// Returns a line for each step, and the violation.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (index, step) in self.steps.iter().enumerate() {
            writeln!(text, "{:3}. {step}", index + 1).unwrap();
        }
        writeln!(text, "     {:?}", self.violation).unwrap();
        text
    }
}

/// The result of an exploration.
pub struct Exploration {
    pub states: usize,
    /// The largest number of steps that a state needs.
    pub depth: usize,
    /// True if all states were explored.
    pub is_complete: bool,
    pub counterexample: Option<Counterexample>,
}

/// A state, and the step that first led to it.
struct Visit {
    state: State,
    parent: usize,
    action: Action,
    depth: usize,
}

/// Explores all states in breadth, so the first counterexample is the shortest.
pub fn explore(model: &Model, max_states: usize) -> Exploration {
    explore_with(model, max_states, |_| {})
}

/// Explores all states in breadth, and calls `visit` for each one.
pub fn explore_with(model: &Model, max_states: usize, visit: impl Fn(&State)) -> Exploration {
    let initial = model.initial();
    let mut known = HashSet::<State, BuildHasherDefault<FastHasher>>::from_iter([initial]);
    let mut visits = vec![Visit { state: initial, parent: 0, action: Action::Tick, depth: 0 }];
    let (mut next, mut depth) = (0, 0);
    while next < visits.len() && visits.len() < max_states {
        let state = visits[next].state;
        depth = visits[next].depth;
        visit(&state);
        for action in model.actions(&state) {
            let Some(step) = model.apply(&state, action) else { continue };
            if let Some(violation) = step.violation {
                let mut steps = steps_to(&visits, next);
                steps.push(action);
                return Exploration {
                    states: visits.len(),
                    depth,
                    is_complete: false,
                    counterexample: Some(Counterexample { steps, violation }),
                };
            }
            if known.insert(step.state) {
                visits.push(Visit { state: step.state, parent: next, action, depth: depth + 1 });
            }
        }
        next += 1;
    }
    let is_complete = next == visits.len();
    Exploration { states: visits.len(), depth, is_complete, counterexample: None }
}

fn steps_to(visits: &[Visit], mut index: usize) -> Vec<Action> {
    let mut steps = Vec::new();
    while index > 0 {
        steps.push(visits[index].action);
        index = visits[index].parent;
    }
    steps.reverse();
    steps
}

/// Follows random paths from the initial state, with a number of attempts to take a step. Each run
/// takes the same paths.
pub fn walk_randomly(model: &Model, paths: u64, length: usize) -> Option<Counterexample> {
    (0..paths).find_map(|path| {
        let mut random = SplitMix(path);
        let mut state = model.initial();
        let mut steps = Vec::new();
        for _ in 0..length {
            let actions = model.actions(&state);
            let action = actions[random.below(actions.len())];
            let Some(step) = model.apply(&state, action) else { continue };
            state = step.state;
            steps.push(action);
            if let Some(violation) = step.violation {
                return Some(Counterexample { steps, violation });
            }
        }
        None
    })
}

/// The generator `SplitMix64`.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % end as u64).unwrap()
    }
}

/// Multiplies, as `FxHash` does. The default hasher takes most of the time of a debug build.
#[derive(Default)]
struct FastHasher(u64);

impl Hasher for FastHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u8(*byte);
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}
