//! Templates as they are looked up: an immutable picture of the store's rows, replaced as a whole when they change.

use std::collections::HashMap;
use std::sync::Arc;

use soulbox_types::{BuildId, TemplateId};

use crate::builds::build_of_snapshot;
use crate::spec::TemplateReference;
use crate::store::{
    AssignmentRow, BuildRow, BuildStatus, CatalogRows, SnapshotRow, TeamRow, TemplateRow,
};

const DEFAULT_TAG: &str = "default";

/// What a reference means to a team.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub template: Arc<TemplateRow>,
    pub build: Arc<BuildRow>,
    /// The alias by which it was found; none when it was the ID.
    pub alias: Option<String>,
}

/// Why a reference means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("template `{reference}` is not there, or another team's")]
    NoTemplate { reference: String },
    #[error("template `{reference}` has no build tagged `{tag}`")]
    NoTag { reference: String, tag: String },
    #[error("template `{reference}` belongs to another team")]
    Foreign { reference: String },
}

/// A template as its owner sees it.
#[derive(Debug, Clone)]
pub struct TemplateView {
    pub template: Arc<TemplateRow>,
    /// The build tagged `default`, or the newest one.
    pub build: Option<Arc<BuildRow>>,
    /// Newest first.
    pub builds: Vec<Arc<BuildRow>>,
    /// With their namespace, `namespace/alias`, or bare when global.
    pub names: Vec<String>,
    pub aliases: Vec<String>,
}

/// All templates at one moment.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    templates: HashMap<TemplateId, Arc<TemplateRow>>,
    builds: HashMap<BuildId, Arc<BuildRow>>,
    by_alias: HashMap<(String, String), TemplateId>,
    /// The build of each tag: that of the newest assignment whose build is ready.
    tags: HashMap<(TemplateId, String), BuildId>,
    /// Every assignment of a ready build, oldest first.
    history: HashMap<TemplateId, Vec<Arc<AssignmentRow>>>,
    /// The builds that are snapshots.
    snapshots: HashMap<BuildId, Arc<SnapshotRow>>,
}

impl Catalog {
    pub(crate) fn new(rows: CatalogRows) -> Self {
        let mut catalog = Self::default();
        for template in rows.templates {
            catalog
                .templates
                .insert(template.template_id.clone(), Arc::new(template));
        }
        for build in rows.builds {
            catalog
                .builds
                .insert(build.build_id.clone(), Arc::new(build));
        }
        for alias in rows.aliases {
            catalog
                .by_alias
                .insert((alias.namespace, alias.alias), alias.template_id);
        }
        for snapshot in rows.snapshots {
            catalog
                .snapshots
                .insert(snapshot.build_id.clone(), Arc::new(snapshot));
        }
        // Oldest first, so the newest assignment of a tag stays. A build that is not ready does not take the tag from one that is.
        for assignment in rows.assignments {
            let ready = catalog
                .builds
                .get(&assignment.build_id)
                .is_some_and(|build| build.status == BuildStatus::Ready);
            if !ready {
                continue;
            }
            let key = (assignment.template_id.clone(), assignment.tag.clone());
            catalog.tags.insert(key, assignment.build_id.clone());
            catalog
                .history
                .entry(assignment.template_id.clone())
                .or_default()
                .push(Arc::new(assignment));
        }
        catalog
    }

    /// The build that a team means. Another team's private template is as good as none.
    pub(crate) fn resolve(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Result<Resolved, ResolveError> {
        let missing = || ResolveError::NoTemplate {
            reference: reference.to_string(),
        };
        let (template, alias) = self.find(team, reference).ok_or_else(missing)?;
        if !visible(&template, team) {
            return Err(missing());
        }
        let build = self.tagged(&template, reference)?;
        Ok(Resolved {
            template,
            build,
            alias,
        })
    }

    /// The template of an alias, telling a foreign one from none.
    pub(crate) fn by_alias(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Result<Arc<TemplateRow>, ResolveError> {
        let shown = || reference.to_string();
        let (template, _) = self
            .find(team, reference)
            .ok_or_else(|| ResolveError::NoTemplate { reference: shown() })?;
        if !visible(&template, team) {
            return Err(ResolveError::Foreign { reference: shown() });
        }
        if reference.tag.is_some() {
            self.tagged(&template, reference)?;
        }
        Ok(template)
    }

    /// A template by its ID, only its own team's.
    pub(crate) fn own(
        &self,
        team: &TeamRow,
        id: &TemplateId,
    ) -> Result<TemplateView, ResolveError> {
        let template = self
            .templates
            .get(id)
            .ok_or_else(|| ResolveError::NoTemplate {
                reference: id.to_string(),
            })?;
        if template.team_id != team.team_id {
            return Err(ResolveError::Foreign {
                reference: id.to_string(),
            });
        }
        Ok(self.view(template))
    }

    /// Every template of the team, newest first.
    pub(crate) fn all_of(&self, team: &TeamRow) -> Vec<TemplateView> {
        let mut views: Vec<_> = self
            .templates
            .values()
            .filter(|template| template.team_id == team.team_id)
            .filter(|template| !self.is_snapshot(&template.template_id))
            .map(|template| self.view(template))
            .collect();
        views.sort_by(|a, b| {
            let key =
                |view: &TemplateView| (view.template.created_at, view.template.template_id.clone());
            key(b).cmp(&key(a))
        });
        views
    }

    /// A template of the team by name or ID: a foreign one by its ID is told from none, one by its name is not.
    pub(crate) fn owned(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Result<Arc<TemplateRow>, ResolveError> {
        let shown = || reference.to_string();
        match self.find(team, reference) {
            Some((template, _)) if template.team_id == team.team_id => Ok(template),
            Some((_, None)) => Err(ResolveError::Foreign { reference: shown() }),
            Some((_, Some(_))) | None => Err(ResolveError::NoTemplate { reference: shown() }),
        }
    }

    /// A template of the team as its owner sees it.
    pub(crate) fn view_of(&self, id: &TemplateId) -> Option<TemplateView> {
        self.templates.get(id).map(|template| self.view(template))
    }

    /// The templates that have a global name and that the team may use, by ID.
    pub(crate) fn global(&self, team: &TeamRow) -> Vec<TemplateView> {
        let mut ids: Vec<_> = self
            .by_alias
            .iter()
            .filter(|((namespace, _), _)| namespace.is_empty())
            .map(|(_, id)| id)
            .collect();
        ids.sort();
        ids.dedup();
        ids.into_iter()
            .filter_map(|id| self.templates.get(id))
            .filter(|template| visible(template, team))
            .map(|template| self.view(template))
            .collect()
    }

    /// A build in any state.
    pub(crate) fn build(&self, id: &BuildId) -> Option<Arc<BuildRow>> {
        self.builds.get(id).cloned()
    }

    /// The template of a build.
    pub(crate) fn template_of(&self, build: &BuildRow) -> Option<Arc<TemplateRow>> {
        self.templates.get(&build.template_id).cloned()
    }

    /// The build that a tag of a template holds, which may be a build's ID instead.
    pub(crate) fn tagged_build(
        &self,
        template: &TemplateRow,
        reference: &TemplateReference,
    ) -> Result<Arc<BuildRow>, ResolveError> {
        self.tagged(template, reference)
    }

    /// Every assignment of ready builds of a template, oldest first.
    pub(crate) fn history(&self, id: &TemplateId) -> &[Arc<AssignmentRow>] {
        self.history.get(id).map_or(&[], Vec::as_slice)
    }

    /// The build tagged `default` of a template.
    pub(crate) fn default_build(&self, id: &TemplateId) -> Option<&BuildId> {
        self.tags.get(&(id.clone(), DEFAULT_TAG.to_owned()))
    }

    /// Whether a template has come from snapshots of sandboxes; such are listed by themselves.
    pub(crate) fn is_snapshot(&self, id: &TemplateId) -> bool {
        self.snapshots.values().any(|it| it.template_id == *id)
    }

    /// The snapshot that a build is.
    pub(crate) fn snapshot(&self, build_id: &BuildId) -> Option<&Arc<SnapshotRow>> {
        self.snapshots.get(build_id)
    }

    /// Whether a snapshot of the host is one of the builds, or one has ended or is going to end with it. Of templates that
    /// `is_installed`, which every change of a recipe builds anew, only builds with a tag count: the others can do without.
    pub(crate) fn keeps(
        &self,
        snapshot_name: &str,
        is_installed: impl Fn(&TemplateId) -> bool,
    ) -> bool {
        let build = build_of_snapshot(snapshot_name).and_then(|id| self.build(&id));
        if let Some(build) = build.filter(|build| build.status != BuildStatus::Failed)
            && (!is_installed(&build.template_id)
                || self.tags.values().any(|tagged| *tagged == build.build_id))
        {
            return true;
        }
        let mut all = self.snapshots.values();
        all.any(|it| it.snapshot_name == snapshot_name)
    }

    /// Every snapshot of the team, with the name and the tag that it has.
    pub(crate) fn snapshots_of(
        &self,
        team: &TeamRow,
    ) -> Vec<(Arc<SnapshotRow>, Option<String>, String)> {
        let own = self.snapshots.values();
        own.filter(|it| it.team_id == team.team_id)
            .map(|it| {
                let (name, tag) = self.name_of(it);
                (it.clone(), name, tag)
            })
            .collect()
    }

    fn name_of(&self, snapshot: &SnapshotRow) -> (Option<String>, String) {
        let id = &snapshot.template_id;
        let name = self.templates.get(id).map(|template| self.view(template));
        let name = name.and_then(|view| view.names.first().cloned());
        let tags = self.history.get(id).into_iter().flatten();
        let tag = tags
            .filter(|it| it.build_id == snapshot.build_id)
            .map(|it| it.tag.clone())
            .next_back();
        (name, tag.unwrap_or_else(|| DEFAULT_TAG.to_owned()))
    }

    /// Whether a snapshot lies on the layers of a build of that template.
    pub(crate) fn carries_snapshots(&self, id: &TemplateId) -> bool {
        self.snapshots.values().any(|it| {
            let below = self.builds.get(&it.host_build_id);
            it.template_id != *id && below.is_some_and(|build| build.template_id == *id)
        })
    }

    /// User and folder of programs in sandboxes of a build, as templates have them when the build is not there any more.
    pub(crate) fn defaults_of(&self, id: &BuildId) -> (String, String) {
        match self.builds.get(id) {
            Some(build) => (build.default_user.clone(), build.default_workdir.clone()),
            None => ("user".to_owned(), "/home/user".to_owned()),
        }
    }

    fn find(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Option<(Arc<TemplateRow>, Option<String>)> {
        let aliased = |namespace: &str| {
            let key = (namespace.to_owned(), reference.name.clone());
            let template = self.templates.get(self.by_alias.get(&key)?)?;
            Some((template.clone(), Some(reference.name.clone())))
        };
        if let Some(namespace) = &reference.namespace {
            return aliased(namespace);
        }
        aliased(&team.slug).or_else(|| aliased("")).or_else(|| {
            let id: TemplateId = reference.name.parse().ok()?;
            Some((self.templates.get(&id)?.clone(), None))
        })
    }

    /// A tag that is a UUID means exactly that build.
    fn tagged(
        &self,
        template: &TemplateRow,
        reference: &TemplateReference,
    ) -> Result<Arc<BuildRow>, ResolveError> {
        let tag = reference.tag.as_deref().unwrap_or(DEFAULT_TAG);
        let build_id = match tag.parse::<BuildId>() {
            Ok(exact) => Some(exact),
            Err(_) => self
                .tags
                .get(&(template.template_id.clone(), tag.to_owned()))
                .cloned(),
        };
        build_id
            .and_then(|id| self.builds.get(&id))
            .filter(|build| {
                build.template_id == template.template_id && build.status == BuildStatus::Ready
            })
            .cloned()
            .ok_or_else(|| ResolveError::NoTag {
                reference: TemplateReference {
                    tag: None,
                    ..reference.clone()
                }
                .to_string(),
                tag: tag.to_owned(),
            })
    }

    fn view(&self, template: &Arc<TemplateRow>) -> TemplateView {
        let id = &template.template_id;
        let mut builds: Vec<_> = self
            .builds
            .values()
            .filter(|build| build.template_id == *id)
            .cloned()
            .collect();
        builds.sort_by(|a, b| (b.created_at, &b.build_id).cmp(&(a.created_at, &a.build_id)));
        let build = self
            .default_build(id)
            .and_then(|build_id| self.builds.get(build_id).cloned())
            .or_else(|| builds.first().cloned());
        let mut named: Vec<_> = self
            .by_alias
            .iter()
            .filter(|(_, named)| *named == id)
            .collect();
        named.sort();
        let name = |(namespace, alias): &(String, String)| {
            if namespace.is_empty() {
                alias.clone()
            } else {
                format!("{namespace}/{alias}")
            }
        };
        TemplateView {
            template: template.clone(),
            build,
            builds,
            names: named.iter().map(|(key, _)| name(key)).collect(),
            aliases: named.iter().map(|((_, alias), _)| alias.clone()).collect(),
        }
    }
}

fn visible(template: &TemplateRow, team: &TeamRow) -> bool {
    template.public || template.team_id == team.team_id
}

#[cfg(test)]
mod tests {
    use soulbox_types::{Limits, MiB, MilliCpu, TeamId, UnixMillis};

    use super::*;
    use crate::builds::snapshot_of_build;
    use crate::policy::Policy;
    use crate::store::{AliasRow, AssignmentRow};

    fn team(number: u8, slug: &str) -> TeamRow {
        TeamRow {
            team_id: TeamId::from_random([number; 16]),
            name: slug.to_owned(),
            slug: slug.to_owned(),
            banned: false,
            blocked: false,
            blocked_reason: None,
            max_sandboxes: None,
            max_sandbox_hours: None,
            created_at: UnixMillis(0),
        }
    }

    fn build(number: u8, template_id: &TemplateId, status: BuildStatus) -> BuildRow {
        BuildRow {
            build_id: BuildId::from_random([number; 16]),
            template_id: template_id.clone(),
            status,
            limits: Limits {
                memory: MiB(512),
                cpu: MilliCpu(1000),
                pids: 64,
                disk: MiB(512),
            },
            default_user: "user".to_owned(),
            default_workdir: "/home/user".to_owned(),
            envd_version: "0.6.13".to_owned(),
            policy: Policy::default(),
            created_at: UnixMillis(u64::from(number)),
            updated_at: UnixMillis(u64::from(number)),
            finished_at: None,
        }
    }

    /// Team 1 owns `web` (private, in its namespace) and `base` (public, global); build 3 of `web` is not ready.
    fn catalog() -> (Catalog, TemplateId) {
        let template = |id: &str, public: bool| TemplateRow {
            template_id: id.parse().expect("an ID"),
            team_id: team(1, "one").team_id,
            public,
            created_at: UnixMillis(5),
            updated_at: UnixMillis(5),
            spawn_count: 0,
            last_spawned_at: None,
        };
        let (base, web) = (template("base0", true), template("web0", false));
        let alias = |namespace: &str, alias: &str, id: &TemplateId| AliasRow {
            namespace: namespace.to_owned(),
            alias: alias.to_owned(),
            template_id: id.clone(),
        };
        let assign = |build: u8, id: &TemplateId, tag: &str| AssignmentRow {
            assignment_id: build.to_string(),
            template_id: id.clone(),
            build_id: BuildId::from_random([build; 16]),
            tag: tag.to_owned(),
            assigned_at: UnixMillis(u64::from(build)),
        };
        let (base_id, web_id) = (base.template_id.clone(), web.template_id.clone());
        let rows = CatalogRows {
            builds: vec![
                build(1, &base_id, BuildStatus::Ready),
                build(2, &web_id, BuildStatus::Ready),
                build(3, &web_id, BuildStatus::Building),
                build(4, &web_id, BuildStatus::Ready),
            ],
            aliases: vec![alias("", "base", &base_id), alias("one", "web", &web_id)],
            assignments: vec![
                assign(1, &base_id, "default"),
                assign(2, &web_id, "default"),
                assign(4, &web_id, "default"),
                assign(2, &web_id, "v1"),
            ],
            templates: vec![base, web],
            snapshots: Vec::new(),
        };
        (Catalog::new(rows), web_id)
    }

    fn check(team: &TeamRow, reference: &str) -> Result<u8, ResolveError> {
        let reference = reference.parse().expect("a reference");
        let resolved = catalog().0.resolve(team, &reference)?;
        Ok(u8::try_from(resolved.build.created_at.0).expect("a small number"))
    }

    #[test]
    fn snapshots_of_replaced_builds_by_recipes_are_nobodys() {
        let (catalog, web) = catalog();
        let keeps = |build: u8, installed: bool| {
            let name = snapshot_of_build(&BuildId::from_random([build; 16]));
            catalog.keeps(&name, |id| installed && *id == web)
        };
        // Of these the second has no tag, and there is no build 9.
        assert_eq!(
            [2, 3, 4, 9].map(|build| keeps(build, false)),
            [true, true, true, false]
        );
        assert_eq!(
            [2, 3, 4, 9].map(|build| keeps(build, true)),
            [true, false, true, false]
        );
    }

    #[test]
    fn own_namespace_then_global_then_id() {
        let (one, two) = (team(1, "one"), team(2, "two"));
        assert_eq!(check(&one, "web"), Ok(4), "the newest assignment holds");
        assert_eq!(check(&one, "one/web:v1"), Ok(2));
        assert_eq!(check(&one, "web0"), Ok(4));
        let exact = format!("web:{}", BuildId::from_random([2; 16]));
        assert_eq!(check(&one, &exact), Ok(2));
        assert_eq!(check(&two, "base"), Ok(1));
        assert_eq!(check(&two, "base0:default"), Ok(1));
    }

    #[test]
    fn foreign_private_unready_and_unknown_are_missing() {
        let (one, two) = (team(1, "one"), team(2, "two"));
        let missing = |reference: &str| {
            Err(ResolveError::NoTemplate {
                reference: reference.into(),
            })
        };
        for reference in ["web", "one/web", "web0"] {
            assert_eq!(check(&two, reference), missing(reference));
        }
        assert_eq!(check(&one, "two/web"), missing("two/web"));
        let unready = BuildId::from_random([3; 16]).to_string();
        let foreign = BuildId::from_random([1; 16]).to_string();
        for tag in ["nope", &unready, &foreign] {
            let error = ResolveError::NoTag {
                reference: "web".into(),
                tag: tag.into(),
            };
            assert_eq!(check(&one, &format!("web:{tag}")), Err(error));
        }
        let (catalog, web) = catalog();
        let reference = "one/web".parse().expect("a reference");
        let foreign = |it: &str| ResolveError::Foreign {
            reference: it.into(),
        };
        assert_eq!(
            catalog.by_alias(&two, &reference).err(),
            Some(foreign("one/web"))
        );
        assert_eq!(catalog.own(&two, &web).err(), Some(foreign("web0")));
    }

    #[test]
    fn views_have_names_and_builds_newest_first() {
        let (catalog, web) = catalog();
        let view = catalog.own(&team(1, "one"), &web).expect("own");
        assert_eq!(
            (view.names, view.aliases),
            (vec!["one/web".to_owned()], vec!["web".to_owned()])
        );
        assert_eq!(
            view.builds
                .iter()
                .map(|it| it.created_at.0)
                .collect::<Vec<_>>(),
            [4, 3, 2]
        );
        assert_eq!(catalog.all_of(&team(2, "two")).len(), 0);
    }
}
