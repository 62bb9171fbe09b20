//! Tags of templates: what they hold now, what they held, and changing them.
//!
//! Only ready builds count. Assignments are a tag's history: giving a tag to an older build is a roll-back.

use std::collections::BTreeMap;
use std::sync::Arc;

use soulbox_types::{BuildId, TemplateId, UnixMillis};

use crate::catalog::{Catalog, ResolveError};
use crate::clock;
use crate::control::Control;
use crate::list::{Cursor, Order, Page, page};
use crate::random::{self, RandomError};
use crate::spec::TemplateReference;
use crate::store::{AssignmentRow, BuildRow, StoreError, TeamRow, TemplateRow};

pub(crate) const DEFAULT_TAG: &str = "default";

/// What a tag holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagView {
    pub tag: String,
    pub build_id: BuildId,
    pub assigned_at: UnixMillis,
}

/// One time that a tag was given to a build.
#[derive(Debug, Clone)]
pub struct AssignmentView {
    pub assignment: Arc<AssignmentRow>,
    pub build: Arc<BuildRow>,
}

/// A tag with the newest of what it held.
#[derive(Debug, Clone)]
pub struct TagGroup {
    pub tag: String,
    /// Newest first; never empty.
    pub assignments: Vec<AssignmentView>,
    pub has_more: bool,
}

/// In which order tags are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagOrder {
    NewestFirst,
    OldestFirst,
    NameAscending,
    NameDescending,
}

/// Which tags, and how much of each.
#[derive(Debug, Clone)]
pub struct GroupQuery {
    /// A part of the tag's name.
    pub search: Option<String>,
    pub order: TagOrder,
    /// The last tag of the page before, and when it was last given.
    pub after: Option<Cursor>,
    pub tags: usize,
    pub assignments: usize,
}

/// Why tags were not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    #[error(transparent)]
    Template(#[from] ResolveError),
    #[error("no tag was named")]
    NoTags,
    #[error("`{0}` is no tag")]
    Invalid(String),
    #[error("a tag cannot be a UUID: `{0}`")]
    Uuid(String),
    #[error("the tag `default` cannot be removed")]
    RemovesDefault,
    #[error("the name has a tag in it")]
    NameHasTag,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// A tag as it is kept: trimmed and in lower case.
///
/// # Errors
/// [`TagError::Invalid`].
pub fn normal_tag(text: &str) -> Result<String, TagError> {
    let tag = text.trim().to_lowercase();
    if TemplateReference::is_tag(&tag) {
        Ok(tag)
    } else {
        Err(TagError::Invalid(text.chars().take(80).collect()))
    }
}

/// Tags that a build shall be given, each once. A UUID would hide the build of that ID.
pub(crate) fn assignable(texts: &[String]) -> Result<Vec<String>, TagError> {
    let mut tags = Vec::new();
    for text in texts {
        let tag = normal_tag(text)?;
        if tag.parse::<BuildId>().is_ok() {
            return Err(TagError::Uuid(tag));
        }
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

pub(crate) fn assignment(
    template_id: &TemplateId,
    build_id: &BuildId,
    tag: String,
) -> Result<AssignmentRow, RandomError> {
    Ok(AssignmentRow {
        assignment_id: random::uuid()?,
        template_id: template_id.clone(),
        build_id: build_id.clone(),
        tag,
        assigned_at: clock::wall(),
    })
}

impl Control {
    /// A template of the team by name or ID, which another server may have made meanwhile.
    pub(crate) async fn owned(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Result<Arc<TemplateRow>, ResolveError> {
        let found = self.catalog().owned(team, reference);
        if matches!(found, Err(ResolveError::NoTemplate { .. }))
            && self.refreshed_for_a_miss().await
        {
            return self.catalog().owned(team, reference);
        }
        found
    }

    /// As [`Control::owned`], for reading: a foreign template is as good as none.
    async fn seen(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Result<(Arc<Catalog>, Arc<TemplateRow>), TagError> {
        if reference.tag.is_some() {
            return Err(TagError::NameHasTag);
        }
        match self.owned(team, reference).await {
            Ok(template) => Ok((self.catalog(), template)),
            Err(ResolveError::Foreign { reference }) => {
                Err(ResolveError::NoTemplate { reference }.into())
            }
            Err(other) => Err(other.into()),
        }
    }

    /// What each tag of a template holds, by name.
    ///
    /// # Errors
    /// There is no such template of the team.
    pub async fn tags(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
    ) -> Result<Vec<TagView>, TagError> {
        let (catalog, template) = self.seen(team, reference).await?;
        let groups = groups(&catalog, &template);
        Ok(groups
            .into_iter()
            .filter_map(|(tag, held)| {
                let newest = &held.first()?.assignment;
                Some(TagView {
                    tag,
                    build_id: newest.build_id.clone(),
                    assigned_at: newest.assigned_at,
                })
            })
            .collect())
    }

    /// The tags of a template with what they held, in pages.
    ///
    /// # Errors
    /// There is no such template of the team.
    pub async fn tag_groups(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
        query: &GroupQuery,
    ) -> Result<Page<TagGroup>, TagError> {
        let (catalog, template) = self.seen(team, reference).await?;
        let groups = groups(&catalog, &template)
            .into_iter()
            .filter(|(tag, _)| query.search.as_ref().is_none_or(|part| tag.contains(part)))
            .map(|(tag, mut assignments)| {
                let has_more = assignments.len() > query.assignments;
                assignments.truncate(query.assignments);
                TagGroup {
                    tag,
                    assignments,
                    has_more,
                }
            })
            .collect();
        // By name, the moment does not count.
        let by_name = matches!(
            query.order,
            TagOrder::NameAscending | TagOrder::NameDescending
        );
        let order = match query.order {
            TagOrder::NewestFirst | TagOrder::NameDescending => Order::NewestFirst,
            TagOrder::OldestFirst | TagOrder::NameAscending => Order::OldestFirst,
        };
        let key = |group: &TagGroup| Cursor {
            at: match group.assignments.first() {
                Some(newest) if !by_name => newest.assignment.assigned_at,
                _ => UnixMillis(0),
            },
            id: group.tag.clone(),
        };
        Ok(page(groups, order, query.after.as_ref(), query.tags, key))
    }

    /// What one tag of a template held, newest first; nothing when it never held a ready build.
    ///
    /// # Errors
    /// There is no such template of the team.
    pub async fn tag_assignments(
        &self,
        team: &TeamRow,
        reference: &TemplateReference,
        tag: &str,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page<AssignmentView>, TagError> {
        let (catalog, template) = self.seen(team, reference).await?;
        let held = groups(&catalog, &template).remove(tag).unwrap_or_default();
        Ok(assignment_page(held, after, limit))
    }

    /// Gives tags to the ready build that the target means; its tag is `default` unless it has one, and may be a build's ID.
    ///
    /// # Errors
    /// See [`TagError`]; no tag was changed.
    pub async fn assign_tags(
        &self,
        team: &TeamRow,
        target: &TemplateReference,
        tags: &[String],
    ) -> Result<(Vec<String>, BuildId), TagError> {
        if tags.is_empty() {
            return Err(TagError::NoTags);
        }
        let tags = assignable(tags)?;
        let template = self.owned(team, target).await?;
        let build = self.catalog().tagged_build(&template, target)?;
        let assignments = tags
            .iter()
            .map(|tag| assignment(&template.template_id, &build.build_id, tag.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        self.store().assign_tags(&assignments).await?;
        self.reload_catalog().await?;
        tracing::info!(template_id = %template.template_id, build_id = %build.build_id, ?tags, "tagged a build");
        Ok((tags, build.build_id.clone()))
    }

    /// Takes tags from a template; those that it does not have are passed over.
    ///
    /// # Errors
    /// See [`TagError`]; no tag was changed.
    pub async fn remove_tags(
        &self,
        team: &TeamRow,
        name: &TemplateReference,
        tags: &[String],
    ) -> Result<(), TagError> {
        if name.tag.is_some() {
            return Err(TagError::NameHasTag);
        }
        if tags.is_empty() {
            return Err(TagError::NoTags);
        }
        let tags = tags
            .iter()
            .map(|tag| normal_tag(tag))
            .collect::<Result<Vec<_>, _>>()?;
        if tags.iter().any(|tag| tag == DEFAULT_TAG) {
            return Err(TagError::RemovesDefault);
        }
        let template = self.owned(team, name).await?;
        self.store()
            .remove_tags(&template.template_id, &tags, clock::wall())
            .await?;
        self.reload_catalog().await?;
        tracing::info!(template_id = %template.template_id, ?tags, "removed tags");
        Ok(())
    }
}

/// What each tag held, newest first.
fn groups(catalog: &Catalog, template: &TemplateRow) -> BTreeMap<String, Vec<AssignmentView>> {
    let mut groups: BTreeMap<String, Vec<AssignmentView>> = BTreeMap::new();
    for assignment in catalog.history(&template.template_id) {
        if let Some(build) = catalog.build(&assignment.build_id) {
            groups
                .entry(assignment.tag.clone())
                .or_default()
                .push(AssignmentView {
                    assignment: assignment.clone(),
                    build,
                });
        }
    }
    // The order of the rows and not of the moments: two in one millisecond have an order too, and the last one holds.
    for held in groups.values_mut() {
        held.reverse();
    }
    groups
}

/// The part of a newest-first list that follows the last one of the page before, which may have been removed since.
fn assignment_page(
    mut held: Vec<AssignmentView>,
    after: Option<&Cursor>,
    limit: usize,
) -> Page<AssignmentView> {
    let total = held.len();
    if let Some(after) = after {
        let last = held
            .iter()
            .position(|it| it.assignment.assignment_id == after.id);
        let next = match last {
            Some(last) => last + 1,
            None => held.partition_point(|it| it.assignment.assigned_at >= after.at),
        };
        held.drain(..next);
    }
    let more = held.len() > limit;
    held.truncate(limit);
    let next = held.last().filter(|_| more).map(|it| Cursor {
        at: it.assignment.assigned_at,
        id: it.assignment.assignment_id.clone(),
    });
    Page {
        items: held,
        total,
        next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_lowered_once_each_and_never_uuids() {
        let texts = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let tags = assignable(&texts(&["V1", " v1 ", "latest"])).expect("good");
        assert_eq!(tags, ["v1", "latest"]);
        let uuid = BuildId::from_random([1; 16]).to_string();
        assert!(matches!(
            assignable(&texts(&[&uuid])),
            Err(TagError::Uuid(_))
        ));
        for bad in ["", "a/b", "a b", "a:b"] {
            assert!(
                matches!(assignable(&texts(&[bad])), Err(TagError::Invalid(_))),
                "{bad}"
            );
        }
    }
}
