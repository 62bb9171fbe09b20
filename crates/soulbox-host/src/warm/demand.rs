//! Which builds sandboxes were lately made of, and so which of them have slots ahead. Pure.
//!
//! The slots are shared by use, which halves every five minutes: a build has them from its second create within that time until ten minutes
//! after its last one, and never more than its creates that still count. The default build keeps a quarter and whatever nobody else has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use soulbox_pool::TemplateManifest;

/// After this time a create counts for half of one.
const HALF_LIFE: Duration = Duration::from_secs(300);
/// After this time without a create nothing is kept for a build.
const KEPT: Duration = Duration::from_secs(600);
/// Two creates half a life apart: the first one alone may stay the only one.
const WORTH_IT: f64 = 1.5;
/// Builds that have slots besides the default one, so that many seldom used ones do not drive out each other's.
const MOST_BUILDS: usize = 8;
/// Builds that are remembered; whoever uses more of them has no slots for those used least.
const MOST_REMEMBERED: usize = 64;
/// The part of the slots that the default build keeps: one of this many.
const DEFAULT_KEEPS: usize = 4;

/// How much each build was used.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// The default one first, if there is one.
    default: Option<Use>,
    others: Vec<Use>,
}

#[derive(Debug)]
struct Use {
    template: Arc<TemplateManifest>,
    /// Creates, as they counted at the last of them.
    creates: f64,
    last: Option<Instant>,
}

/// How many slots a build should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) template: Arc<TemplateManifest>,
    pub(super) slots: usize,
}

/// What to do next about the stock.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Make(Arc<TemplateManifest>),
    /// A slot of this build, which others need more.
    GiveBack(String),
    Nothing,
}

impl Use {
    fn unused(template: Arc<TemplateManifest>) -> Self {
        Self {
            template,
            creates: 0.0,
            last: None,
        }
    }

    fn age(&self, now: Instant) -> Duration {
        self.last
            .map_or(Duration::MAX, |last| now.saturating_duration_since(last))
    }

    /// Creates, as they count now.
    fn count(&self, now: Instant) -> f64 {
        let lives = self.age(now).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.creates * (-lives).exp2()
    }

    fn note(&mut self, now: Instant) {
        self.creates = self.count(now) + 1.0;
        self.last = Some(now);
    }

    fn is_worth_it(&self, now: Instant) -> bool {
        self.creates >= WORTH_IT && self.age(now) < KEPT
    }
}

impl Demand {
    pub(super) fn new(default: Option<TemplateManifest>) -> Self {
        Self {
            default: default.map(|template| Use::unused(Arc::new(template))),
            others: Vec::new(),
        }
    }

    /// A sandbox of it was asked for that could begin from a slot ahead.
    pub(super) fn note(&mut self, template: &TemplateManifest, now: Instant) {
        let mut all = self.default.iter_mut().chain(&mut self.others);
        if let Some(known) = all.find(|it| *it.template == *template) {
            known.note(now);
            return;
        }
        // What was known of the build has changed.
        self.forget(&template.build_id);
        if self.others.len() >= MOST_REMEMBERED {
            self.others
                .sort_by(|a, b| b.count(now).total_cmp(&a.count(now)));
            self.others.truncate(MOST_REMEMBERED - 1);
        }
        let mut new = Use::unused(Arc::new(template.clone()));
        new.note(now);
        self.others.push(new);
    }

    pub(super) fn set_default(&mut self, template: Option<TemplateManifest>) {
        if self.default.as_ref().map(|it| &*it.template) == template.as_ref() {
            return;
        }
        if let Some(template) = &template {
            self.forget(&template.build_id);
        }
        self.default = template.map(|template| Use::unused(Arc::new(template)));
    }

    /// A build other than the default has no slots any more until it is used anew.
    pub(super) fn forget(&mut self, build_id: &str) {
        self.others.retain(|it| it.template.build_id != build_id);
    }

    /// There is a build of a template: what else is known of that template is old.
    pub(super) fn renew(&mut self, template: &TemplateManifest) {
        self.others.retain(|it| {
            it.template.template_id != template.template_id || *it.template == *template
        });
    }

    /// How so many slots are shared; no build twice, none without a slot, and not more slots than there are.
    pub(super) fn shares(&self, slots: usize, now: Instant) -> Vec<Share> {
        let mut used: Vec<&Use> = self
            .others
            .iter()
            .filter(|it| it.is_worth_it(now))
            .collect();
        used.sort_by(|a, b| b.count(now).total_cmp(&a.count(now)));
        let kept = self
            .default
            .as_ref()
            .map_or(0, |_| slots.div_ceil(DEFAULT_KEEPS));
        used.truncate(MOST_BUILDS.min(slots - kept));
        // One each, and the rest by use: each slot goes to whom it serves most creates.
        let mut shares: Vec<(&Use, usize)> = used.into_iter().map(|it| (it, 1)).collect();
        shares.extend(self.default.iter().map(|it| (it, kept)));
        let mut left = slots - shares.iter().map(|(_, share)| share).sum::<usize>();
        let served = |used: &Use, share: usize| {
            let share = f64::from(u32::try_from(share).unwrap_or(u32::MAX));
            let count = used.count(now);
            (share < count).then(|| count / (share + 1.0))
        };
        while left > 0 {
            let wanting = shares
                .iter_mut()
                .filter_map(|(used, share)| served(used, *share).map(|served| (served, share)));
            let Some((_, share)) = wanting.max_by(|a, b| a.0.total_cmp(&b.0)) else {
                break;
            };
            *share += 1;
            left -= 1;
        }
        if let (Some(_), Some((_, default))) = (&self.default, shares.last_mut()) {
            *default += left;
        }
        let shares = shares.into_iter().filter(|(_, slots)| *slots > 0);
        shares
            .map(|(used, slots)| Share {
                template: Arc::clone(&used.template),
                slots,
            })
            .collect()
    }
}

/// What to do next, where so many slots of each build are in stock. Slots are given back for a build that has half of its share or less;
/// smaller differences even out as slots are used up.
pub(super) fn step(shares: &[Share], stock: &BTreeMap<&str, usize>, slots: usize) -> Step {
    let of = |share: &Share| stock.get(&*share.template.build_id).copied().unwrap_or(0);
    let wanted: BTreeMap<&str, usize> = shares
        .iter()
        .map(|share| (&*share.template.build_id, share.slots))
        .collect();
    let excess =
        |(build, have): (&&str, &usize)| have.saturating_sub(*wanted.get(build).unwrap_or(&0));
    if let Some((build, _)) = stock.iter().find(|(build, _)| !wanted.contains_key(*build)) {
        return Step::GiveBack((*build).to_owned());
    }
    let lack = |share: &&Share| share.slots.saturating_sub(of(share));
    let Some(most) = shares.iter().max_by_key(lack).filter(|it| lack(it) > 0) else {
        return Step::Nothing;
    };
    if stock.values().sum::<usize>() < slots {
        return Step::Make(Arc::clone(&most.template));
    }
    let poor = shares
        .iter()
        .filter(|it| of(it) * 2 <= it.slots)
        .max_by_key(lack);
    let rich = stock.iter().max_by_key(|it| excess(*it));
    match (poor, rich) {
        (Some(_), Some((build, _))) => Step::GiveBack((*build).to_owned()),
        _ => Step::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use soulbox_pool::Inherited;

    use super::*;

    const SLOTS: usize = 16;

    fn build(name: &str) -> TemplateManifest {
        TemplateManifest {
            name: name.to_owned(),
            template_id: format!("template of {name}"),
            build_id: name.to_owned(),
            built_at: 1,
            layers: Vec::new(),
            cpu_count: 2,
            memory_mib: 512,
            disk_mib: 1024,
            default_user: "user".to_owned(),
            default_workdir: "/home/user".to_owned(),
            inherited: Inherited::default(),
        }
    }

    fn demand() -> (Demand, Instant) {
        (Demand::new(Some(build("base"))), Instant::now())
    }

    fn note(demand: &mut Demand, name: &str, creates: usize, now: Instant) {
        for _ in 0..creates {
            demand.note(&build(name), now);
        }
    }

    fn shares(demand: &Demand, slots: usize, now: Instant) -> Vec<(String, usize)> {
        let shares = demand.shares(slots, now);
        assert!(shares.iter().map(|share| share.slots).sum::<usize>() <= slots);
        let told = shares.into_iter();
        told.map(|share| (share.template.build_id.clone(), share.slots))
            .collect()
    }

    fn check(demand: &Demand, now: Instant, expected: &[(&str, usize)]) {
        let expected: Vec<_> = (expected.iter())
            .map(|(name, slots)| ((*name).to_owned(), *slots))
            .collect();
        assert_eq!(shares(demand, SLOTS, now), expected);
    }

    #[test]
    fn the_default_build_has_all_until_another_one_is_used_twice() {
        let (mut demand, now) = demand();
        check(&demand, now, &[("base", 16)]);
        note(&mut demand, "own", 1, now);
        check(&demand, now, &[("base", 16)]);
        note(&mut demand, "own", 1, now + HALF_LIFE);
        check(&demand, now + HALF_LIFE, &[("own", 2), ("base", 14)]);
    }

    #[test]
    fn a_second_create_that_comes_late_is_a_first_one() {
        let (mut demand, now) = demand();
        note(&mut demand, "own", 1, now);
        let late = now + 2 * HALF_LIFE;
        note(&mut demand, "own", 1, late);
        check(&demand, late, &[("base", 16)]);
    }

    #[test]
    fn what_is_not_used_any_more_gives_its_slots_back() {
        let (mut demand, now) = demand();
        note(&mut demand, "own", 8, now);
        check(&demand, now, &[("own", 8), ("base", 8)]);
        check(&demand, now + HALF_LIFE, &[("own", 4), ("base", 12)]);
        let nearly = now + KEPT - Duration::from_secs(1);
        check(&demand, nearly, &[("own", 3), ("base", 13)]);
        check(&demand, now + KEPT, &[("base", 16)]);
    }

    #[test]
    fn slots_are_shared_by_use_and_the_default_build_keeps_a_quarter() {
        let (mut demand, now) = demand();
        note(&mut demand, "often", 1000, now);
        check(&demand, now, &[("often", 12), ("base", 4)]);
        note(&mut demand, "base", 1000, now);
        check(&demand, now, &[("often", 8), ("base", 8)]);
        note(&mut demand, "half as often", 500, now);
        check(
            &demand,
            now,
            &[("often", 6), ("half as often", 3), ("base", 7)],
        );
    }

    #[test]
    fn few_slots_are_the_default_builds_first() {
        let (mut demand, now) = demand();
        note(&mut demand, "own", 1000, now);
        for (slots, expected) in [(0, vec![]), (1, vec![("base", 1)])] {
            let expected: Vec<_> = (expected.iter())
                .map(|(name, slots): &(&str, usize)| ((*name).to_owned(), *slots))
                .collect();
            assert_eq!(shares(&demand, slots, now), expected);
        }
        assert_eq!(
            shares(&demand, 2, now),
            [("own".to_owned(), 1), ("base".to_owned(), 1)]
        );
    }

    #[test]
    fn without_a_default_build_the_others_have_what_they_use() {
        let (mut demand, now) = (Demand::new(None), Instant::now());
        check(&demand, now, &[]);
        note(&mut demand, "own", 3, now);
        check(&demand, now, &[("own", 3)]);
    }

    #[test]
    fn many_seldom_used_builds_take_turns_in_a_part_of_the_slots() {
        let (mut demand, now) = demand();
        note(&mut demand, "mine", 20, now);
        for number in 0..1000 {
            note(&mut demand, &format!("other {number}"), 2, now);
        }
        let shares = shares(&demand, SLOTS, now);
        assert_eq!(shares.len(), MOST_BUILDS + 1);
        assert_eq!(shares[0], ("mine".to_owned(), 5));
        assert!(demand.others.len() <= MOST_REMEMBERED);
    }

    #[test]
    fn a_new_build_takes_the_place_of_the_templates_old_one() {
        let (mut demand, now) = demand();
        note(&mut demand, "own", 4, now);
        let mut new = build("newer");
        new.template_id = build("own").template_id;
        demand.renew(&build("own"));
        check(&demand, now, &[("own", 4), ("base", 12)]);
        demand.renew(&new);
        check(&demand, now, &[("base", 16)]);
    }

    #[test]
    fn a_deleted_build_has_none_and_the_default_one_may_change() {
        let (mut demand, now) = demand();
        note(&mut demand, "own", 4, now);
        note(&mut demand, "base", 4, now);
        demand.forget("own");
        check(&demand, now, &[("base", 16)]);
        note(&mut demand, "next", 4, now);
        demand.set_default(Some(build("next")));
        check(&demand, now, &[("next", 16)]);
        demand.set_default(None);
        check(&demand, now, &[]);
    }

    fn stepped(shares: &[(&str, usize)], stock: &[(&str, usize)]) -> String {
        let shares: Vec<_> = (shares.iter())
            .map(|(name, slots)| Share {
                template: Arc::new(build(name)),
                slots: *slots,
            })
            .collect();
        match step(&shares, &stock.iter().copied().collect(), SLOTS) {
            Step::Make(template) => format!("make {}", template.build_id),
            Step::GiveBack(build_id) => format!("give back {build_id}"),
            Step::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn what_lacks_most_is_made_first_and_differences_even_out() {
        let shares = [("own", 6), ("base", 10)];
        assert_eq!(stepped(&shares, &[]), "make base");
        assert_eq!(stepped(&shares, &[("base", 9)]), "make own");
        assert_eq!(stepped(&shares, &[("base", 16)]), "give back base");
        assert_eq!(stepped(&shares, &[("base", 15)]), "make own");
        assert_eq!(
            stepped(&shares, &[("base", 13), ("own", 3)]),
            "give back base"
        );
        // More than half of its share is enough to wait until others are used up.
        assert_eq!(stepped(&shares, &[("base", 12), ("own", 4)]), "nothing");
        assert_eq!(stepped(&shares, &[("base", 11), ("own", 4)]), "make own");
        assert_eq!(stepped(&shares, &[("base", 10), ("own", 6)]), "nothing");
        assert_eq!(
            stepped(&shares, &[("base", 3), ("own", 13)]),
            "give back own"
        );
        assert_eq!(
            stepped(&[("base", 16)], &[("own", 1), ("base", 2)]),
            "give back own"
        );
    }
}
