//! The planner against an oracle: for random targets, what a plan promises is what the rules of PostgreSQL make of every
//! line of `pg_waldump`, and what a real server comes to.
//!
//! More of it: `PGP_TEST_PLANS` random targets per major, `PGP_TEST_RECOVERIES` real recoveries.

mod judge;
mod reading;
mod recoveries;
mod redated;
mod rules;
mod scene;
mod targets;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use chrono::TimeDelta;
use pgp_pitr::env::Env;
use pgp_pitr::ops::plan::Request;
use pgp_pitr::pg::SegmentNumber;
use pgp_pitr::plan::recovery::Plan;

use crate::support::chance::Chance;
use crate::support::tools::Major;

use judge::Judge;
use recoveries::Servers;
use redated::{earlier, redated, set_back};
use scene::Scene;
use targets::Targets;

#[test]
fn a_plan_for_any_target_is_what_pg_waldump_and_real_servers_tell() {
    let majors = Major::all();
    let plans = wanted("PGP_TEST_PLANS", 1000);
    let recoveries = wanted("PGP_TEST_RECOVERIES", 110).div_ceil(majors.len());
    for major in majors {
        let scene = Scene::play(major, 1, 400);
        let oracle = Oracle::of(&scene);
        oracle.plan_for_random_targets(plans);
        oracle.recover_to_random_targets(recoveries);
        let redated = redated(&scene, |at| earlier(at, &oracle.chance));
        let oracle = Oracle::of(&redated);
        oracle.plan_for_random_targets(plans / 2);
        oracle.recover_to_random_targets(recoveries.div_ceil(4));
    }
}

#[test]
fn a_plan_is_right_in_segments_of_16_mebibytes() {
    let scene = Scene::play(Major::newest(), 16, 300);
    let oracle = Oracle::of(&scene);
    oracle.plan_for_random_targets(wanted("PGP_TEST_PLANS", 1000) / 5);
    oracle.recover_to_random_targets(3);
}

#[test]
fn a_plan_is_right_across_a_fork() {
    let scene = Scene::play_with_a_fork(Major::usual(), 300);
    let oracle = Oracle::of(&scene);
    oracle.plan_for_random_targets(wanted("PGP_TEST_PLANS", 1000) / 2);
    oracle.recover_to_random_targets(8);
}

#[test]
fn a_plan_is_right_where_a_clock_was_set_back() {
    let scene = Scene::play(Major::usual(), 1, 400);
    let segments = scene.segments();
    let at = segments[1 + Chance::new().below(segments.len() - 2)];
    let scene = set_back(&scene, at, TimeDelta::seconds(10));
    Oracle::of(&scene).plan_for_random_targets(wanted("PGP_TEST_PLANS", 1000) / 2);
}

/// A number from the environment.
fn wanted(name: &str, usually: usize) -> usize {
    let env = Env::of_process();
    env.var(name)
        .map_or(usually, |number| number.parse().expect("a number"))
}

/// A recovery by a real server.
enum Job {
    /// As planned.
    Follow(Request, Box<Plan>),
    /// As asked, from the backup of this number.
    Defy(Request, usize),
}

/// Knows what must come of any target in a scene.
struct Oracle<'a> {
    scene: &'a Scene,
    targets: Targets<'a>,
    chance: Chance,
}

impl<'a> Oracle<'a> {
    fn of(scene: &'a Scene) -> Self {
        let targets = Targets::of(scene);
        let (same, out_of_order) = targets.same_and_out_of_order();
        eprintln!(
            "PostgreSQL {}: {} records in {} segments; {same} ends of transactions at the time of the one before, \
             {out_of_order} at an earlier one",
            scene.major.number(),
            scene.records.len(),
            scene.segments().len(),
        );
        let chance = Chance::new();
        Self { scene, targets, chance }
    }

    /// A quarter of them where WAL is missing, at the end or in the middle.
    fn plan_for_random_targets(&self, count: usize) {
        let refused = self.plan(&[], count * 3 / 4);
        assert!(refused > 0 && refused < count / 2, "{refused} of {count} were refused");
        for _ in 0..count.div_ceil(40) {
            self.plan(&self.some_segments(), 10);
        }
    }

    /// Plans where these segments are missing. Returns how many requests were refused.
    fn plan(&self, missing: &[SegmentNumber], count: usize) -> usize {
        let view = self.scene.without(missing);
        let judge = Judge::of(self.scene, &view);
        let (mut refused, mut wrong) = (0, Vec::new());
        for _ in 0..count {
            match judge.check(&self.targets.request(&self.chance)) {
                Ok(Some(_)) => {}
                Ok(None) => refused += 1,
                Err(why) => wrong.push(why),
            }
        }
        let shown = wrong[..wrong.len().min(5)].join("\n");
        let among = wrong.len();
        assert!(
            among == 0,
            "without {missing:?}, {among} of {count} are wrong:\n{shown}"
        );
        refused
    }

    /// One in five from a backup that may not serve, with a target that may be out of reach. Two at a time.
    fn recover_to_random_targets(&self, count: usize) {
        let view = self.scene.without(&[]);
        let judge = Judge::of(self.scene, &view);
        let servers = Servers::of(self.scene);
        let jobs: Vec<Job> = (0..count)
            .map(|n| match n % 5 {
                0 => Job::Defy(
                    self.targets.request(&self.chance),
                    self.chance.below(judge.starts().len()),
                ),
                _ => self.planned(&judge),
            })
            .collect();
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match job {
                            Job::Follow(request, plan) => servers.follow(&judge, request, plan),
                            Job::Defy(request, backup) => servers.defy(&judge, *backup, request),
                        }
                    }
                });
            }
        });
    }

    /// A random request that can be had.
    fn planned(&self, judge: &Judge<'_>) -> Job {
        loop {
            let request = self.targets.request(&self.chance);
            match judge.check(&request) {
                Ok(Some(plan)) => return Job::Follow(request, Box::new(plan)),
                Ok(None) => {}
                Err(why) => panic!("{why}"),
            }
        }
    }

    /// All from some segment on, or one or two in the middle.
    fn some_segments(&self) -> Vec<SegmentNumber> {
        let mut segments = self.scene.segments();
        let at = 1 + self.chance.below(segments.len() - 2);
        let mut tail = segments.split_off(at);
        match self.chance.below(3) {
            0 => {}
            some => tail.truncate(some),
        }
        tail
    }
}
