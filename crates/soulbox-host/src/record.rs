//! What the agent writes down of each live sandbox, so that the next agent can adopt it. Written without fsync: a reboot ends the sandboxes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use soulbox_wire::host::{AtDeadline, Egress};

use crate::snapshot::RootBasis;

/// Below the data directory.
pub const DIRECTORY: &str = "host/sandboxes";

/// One live sandbox. Holds its secret, so the file is for root only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub sandbox_id: String,
    pub epoch: u64,
    pub build_id: String,
    pub started_at: u64,
    pub deadline: u64,
    #[serde(default)]
    pub at_deadline: AtDeadline,
    pub slot: u16,
    /// The host's pid of init and its start time, which together name the process.
    pub pid: i32,
    pub start_time: u64,
    /// Name of the upper in the pool.
    pub upper: String,
    /// Bytes on disk that it had from the snapshot that it was made from.
    #[serde(default)]
    pub inherited: u64,
    /// Digest of the guest programs that run inside.
    pub guests: String,
    pub init_secret: String,
    /// Where it may connect to, as the front last said.
    pub egress: Egress,
    /// What its root stands on.
    #[serde(default)]
    pub basis: RootBasis,
    /// It is for a step of a template build, and in no list.
    #[serde(default)]
    pub step: bool,
}

/// Whether sandboxes of the data directory may be running, with or without an agent.
#[must_use]
pub fn any(data: &Path) -> bool {
    fs::read_dir(data.join(DIRECTORY)).is_ok_and(|mut entries| entries.next().is_some())
}

/// The directory of records.
#[derive(Debug)]
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// Opens the directory below `data`, making it when absent.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(data: &Path) -> io::Result<Self> {
        let directory = data.join(DIRECTORY);
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// Writes or replaces a record; a reader sees the old or the new one, never a part.
    ///
    /// # Errors
    /// The file system's.
    pub fn put(&self, record: &Record) -> io::Result<()> {
        let path = self.path(&record.sandbox_id);
        let draft = path.with_extension("new");
        let text = serde_json::to_vec(record)?;
        let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, path));
        if written.is_err() {
            // Nothing is left of what a full disk did not take.
            let _ = fs::remove_file(draft);
        }
        written
    }

    /// Deletes a record; absent is fine.
    pub fn delete(&self, sandbox_id: &str) {
        let _ = fs::remove_file(self.path(sandbox_id));
    }

    /// All records.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn all(&self) -> io::Result<Vec<Record>> {
        let records = self.found()?.into_iter();
        Ok(records.filter_map(|(_, record)| record).collect())
    }

    /// Removes what cannot be read as a record: its sandbox is then found by the sweep. Only while nobody writes any.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn sweep(&self) -> io::Result<()> {
        for (path, record) in self.found()? {
            if record.is_none() {
                tracing::warn!(path = %path.display(), "removing a record that cannot be read");
                let _ = fs::remove_file(&path);
            }
        }
        Ok(())
    }

    /// The files of the directory, and what is written in each, if it is a record of its name.
    fn found(&self) -> io::Result<Vec<(PathBuf, Option<Record>)>> {
        let paths = fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.path()));
        paths
            .map(|path: io::Result<PathBuf>| {
                let path = path?;
                let record = fs::read(&path)
                    .ok()
                    .and_then(|text| serde_json::from_slice::<Record>(&text).ok())
                    .filter(|record| path == self.path(&record.sandbox_id));
                Ok((path, record))
            })
            .collect()
    }

    fn path(&self, sandbox_id: &str) -> PathBuf {
        self.directory.join(format!("{sandbox_id}.json"))
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    fn record() -> Record {
        Record {
            sandbox_id: "iabc".into(),
            epoch: 3,
            build_id: "b".into(),
            started_at: 1,
            deadline: 2,
            at_deadline: AtDeadline::Pause { memory: true },
            slot: 4,
            pid: 5,
            start_time: 6,
            upper: "u".into(),
            inherited: 7,
            basis: RootBasis {
                layers: vec!["ab".into()],
                ..RootBasis::default()
            },
            guests: "g".into(),
            init_secret: "00".into(),
            egress: Egress::Only(vec!["1.1.1.1/32".into()]),
            step: true,
        }
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing() {
        let data = tempfile::tempdir().unwrap();
        let records = Records::open(data.path()).unwrap();
        // In the place of the record stands what no file replaces.
        fs::create_dir(records.path("iabc")).unwrap();
        assert!(records.put(&record()).is_err());
        let left: Vec<_> = fs::read_dir(&records.directory).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn records_survive_and_garbage_does_not() {
        let data = tempfile::tempdir().unwrap();
        let records = Records::open(data.path()).unwrap();
        let record = record();
        records.put(&record).unwrap();
        let half = data.path().join(DIRECTORY).join("half.json");
        fs::write(&half, "{\"sandbox_id\":").unwrap();
        // One that is being written is nobody's to remove.
        assert_eq!(records.all().unwrap(), slice::from_ref(&record));
        assert!(half.exists());
        records.sweep().unwrap();
        assert_eq!(records.all().unwrap(), [record]);
        assert!(!half.exists());
        records.delete("iabc");
        assert!(records.all().unwrap().is_empty());
    }
}
