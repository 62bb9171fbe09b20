//! The RPC between the unprivileged front and the root host agent.
//!
//! One stream socket, both directions multiplexed. A frame is a header of eight bytes and a JSON body:
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..4 | length of the body, big endian |
//! | 4 | number of descriptors that travel with the frame (SCM_RIGHTS), in order |
//! | 5..8 | zero |
//! | 8.. | a [`FrontFrame`] (front to agent) or an [`AgentFrame`] (agent to front) |
//!
//! The agent trusts the front with policy (which sandboxes exist), never with privilege: no frame names a path,
//! a pid or a command. Times are Unix milliseconds, sizes are MiB unless the name says otherwise.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use soulbox_types::{Cidr, ParseCidrError};

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 8;
/// The longest body that either side accepts.
pub const MAX_BODY: usize = 8 << 20;
/// The most descriptors that one frame may carry.
pub const MAX_FDS: usize = 16;

/// What the front sends: a request with a number of its own choice, which the reply repeats.
#[derive(Debug, Serialize, Deserialize)]
pub struct FrontFrame {
    pub id: u64,
    pub request: Request,
}

/// What the agent sends.
#[derive(Debug, Serialize, Deserialize)]
pub enum AgentFrame {
    Reply {
        id: u64,
        result: Result<Reply, HostError>,
    },
    Event(Event),
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// First request of every front. Reply: [`Reply::Hello`], with one descriptor for each public listener, in the order of `listeners`.
    Hello,
    /// Start a sandbox. Reply: [`Reply::Created`] with one descriptor: a TCP socket connected to its envd.
    Create(Create),
    /// End a sandbox. The reply comes when no process of it is left.
    Kill { sandbox_id: String, epoch: u64 },
    /// Move the deadline, in either direction. The host ends the sandbox at the deadline by itself.
    SetDeadline {
        sandbox_id: String,
        epoch: u64,
        deadline: u64,
    },
    /// Change where it may connect to.
    SetEgress {
        sandbox_id: String,
        epoch: u64,
        egress: Egress,
    },
    /// Connect to a TCP port inside: 127.0.0.1, then ::1, then the outer address. Reply: [`Reply::Dialled`] with one descriptor.
    Dial { sandbox_id: String, port: u16 },
    /// Connect to the database of `database_url`. Reply: [`Reply::Dialled`] with one descriptor, of a TCP or a unix socket.
    DialDatabase,
    /// Every live sandbox of this host. Reply: [`Reply::Sandboxes`].
    List,
    /// What every live sandbox has used. Reply: [`Reply::Usage`].
    Usage,
    /// What this host is and how it does. Reply: [`Reply::Node`].
    Node,
    /// Whether it takes new sandboxes; what runs goes on. Kept until the agent ends.
    SetNodeStatus(NodeStatus),
    /// Templates whose layers lie in this host's pool, read from disk anew. Reply: [`Reply::Templates`].
    Templates,
    /// Make a snapshot of a live sandbox. Reply: [`Reply::Saved`], when all of it is on disk and, with [`After::End`], no process is left.
    Save(Save),
    /// Delete a snapshot; one that is not there is deleted already. Reply: [`Reply::Done`].
    DeleteSnapshot { snapshot_id: String },
    /// Every whole snapshot of this host. Reply: [`Reply::Snapshots`].
    Snapshots,
    /// Make another sandbox, from a snapshot of a live one, that may take its place: the live one goes on. Reply: [`Reply::Created`] with one
    /// descriptor, as for [`Request::Create`]. It is ended when nothing more is heard of it within a minute.
    Prepare(Create),
    /// Let what was prepared take the place of the live sandbox, which ends. When it cannot, the live one goes on. Reply: [`Reply::Done`].
    Replace { sandbox_id: String, epoch: u64 },
    /// End what was prepared; what is not there is ended already. Reply: [`Reply::Done`].
    Abandon { sandbox_id: String },
    /// Put a snapshot into the store of sealed ones, durably. Reply: [`Reply::Sealed`].
    SealSnapshot { snapshot_id: String },
    /// Delete the local copy of a sealed snapshot, after all of it was found right in the store. Reply: [`Reply::Done`].
    DropLocalSnapshot { snapshot_id: String },
    /// Every whole snapshot and the copies there are of it. Reply: [`Reply::SnapshotCopies`].
    SnapshotCopies,
    /// Delete from the store what no sealed snapshot needs, or only count it. Reply: [`Reply::Collected`].
    CollectStore { dry_run: bool },
    /// Make what a live sandbox has written a layer of that name, durably. Reply: [`Reply::Done`].
    CommitLayer {
        sandbox_id: String,
        epoch: u64,
        /// 64 lower-case hex digits, of the front's choice: equal names mean equal layers.
        layer: String,
    },
    /// The layer that has this name now; it stays while the build goes on. Reply: [`Reply::Layers`], with one or none.
    FindLayer { build_id: String, name: String },
    /// Give a layer another name; whoever has the layer that had it keeps that. Reply: [`Reply::Done`].
    NameLayer { name: String, layer: String },
    /// Which of these layers lie in the pool; they stay while the build goes on. Reply: [`Reply::Layers`].
    Layers {
        build_id: String,
        names: Vec<String>,
    },
    /// Delete layers that no build, sandbox or snapshot needs and that are older than so many seconds, or only find them. Reply:
    /// [`Reply::Layers`], those.
    CollectLayers { older_than: u64, dry_run: bool },
    /// One build, whether or not it is the newest of its name. Reply: [`Reply::Templates`], with one or none.
    Build { build_id: String },
    /// Keep a finished build; what exists of that ID is replaced. Reply: [`Reply::Done`].
    PutBuild(Box<HostTemplate>),
    /// Forget a build; one that is not there is forgotten already. Reply: [`Reply::Done`].
    DeleteBuild { build_id: String },
}

/// A snapshot to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Save {
    pub sandbox_id: String,
    pub epoch: u64,
    /// 1 to 64 of `[a-z0-9-]`, of the front's choice and nobody else's.
    pub snapshot_id: String,
    /// Processes and memory too, not only what is on disk.
    pub memory: bool,
    pub after: After,
}

/// What becomes of a sandbox when its snapshot is made. When it cannot be made, the sandbox goes on in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum After {
    GoOn,
    End,
}

/// A whole snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSnapshot {
    pub snapshot_id: String,
    /// Whose it was, and the epoch of the command that made it; that of its last command when the host did so by itself.
    pub sandbox_id: String,
    pub epoch: u64,
    pub build_id: String,
    pub memory: bool,
    /// Whether the sandbox ended with it: it is a pause.
    pub after: After,
    pub created_at: u64,
    /// Bytes on disk: of the files that the sandbox wrote, and of its memory.
    pub disk_bytes: u64,
    pub image_bytes: u64,
}

/// A whole snapshot and the copies there are of it: at least one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotCopies {
    pub snapshot: HostSnapshot,
    pub local: bool,
    pub sealed: bool,
}

/// A snapshot that was put into the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Of all its streams.
    pub bytes: u64,
    /// What was not in the store before, compressed.
    pub added_objects: u64,
    pub added_bytes: u64,
}

/// What a collection of the store has found. With a dry run, `deleted` is what would have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    pub kept_objects: u64,
    pub kept_bytes: u64,
    pub deleted_objects: u64,
    pub deleted_bytes: u64,
}

/// What a sandbox begins from, other than its template alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromSnapshot {
    pub snapshot_id: String,
    /// Its processes go on where they were; else it boots from what was on disk.
    pub memory: bool,
}

/// What the host does by itself at a deadline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AtDeadline {
    #[default]
    Kill,
    /// A snapshot with [`After::End`], of the name `auto-SANDBOX-EPOCH`; when it cannot be made, it is killed.
    Pause { memory: bool },
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Create {
    pub sandbox_id: String,
    pub epoch: u64,
    /// The build (template version) whose layers are the root file system.
    pub build_id: String,
    pub memory_mib: u64,
    pub cpu_milli: u32,
    pub pids: u32,
    pub disk_mib: u64,
    pub egress: Egress,
    pub deadline: u64,
    #[serde(default)]
    pub at_deadline: AtDeadline,
    /// Of the same build.
    #[serde(default)]
    pub snapshot: Option<FromSnapshot>,
    /// Given: it is for a step of a template build. It begins from these layers, lowest first, whatever `build_id` says, and is in no list.
    #[serde(default)]
    pub layers: Vec<String>,
}

/// Where a sandbox may connect to; ranges are such as `1.2.3.0/24`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Egress {
    Denied,
    Open,
    Only(Vec<String>),
    Except {
        denied: Vec<String>,
        allowed: Vec<String>,
    },
}

impl From<&soulbox_types::Egress> for Egress {
    fn from(egress: &soulbox_types::Egress) -> Self {
        let texts = |ranges: &[Cidr]| ranges.iter().map(Cidr::to_string).collect();
        match egress {
            soulbox_types::Egress::Denied => Self::Denied,
            soulbox_types::Egress::Open => Self::Open,
            soulbox_types::Egress::Only(allowed) => Self::Only(texts(allowed)),
            soulbox_types::Egress::Except { denied, allowed } => Self::Except {
                denied: texts(denied),
                allowed: texts(allowed),
            },
        }
    }
}

impl TryFrom<&Egress> for soulbox_types::Egress {
    type Error = ParseCidrError;

    fn try_from(egress: &Egress) -> Result<Self, ParseCidrError> {
        let ranges = |texts: &[String]| {
            texts
                .iter()
                .map(|text| text.parse::<Cidr>())
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(match egress {
            Egress::Denied => Self::Denied,
            Egress::Open => Self::Open,
            Egress::Only(allowed) => Self::Only(ranges(allowed)?),
            Egress::Except { denied, allowed } => Self::Except {
                denied: ranges(denied)?,
                allowed: ranges(allowed)?,
            },
        })
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Hello(Box<Hello>),
    Created(Created),
    /// It is as was asked.
    Done,
    Dialled,
    Sandboxes(Vec<HostSandbox>),
    Usage(Vec<HostUsage>),
    Node(Box<Node>),
    Templates(Vec<HostTemplate>),
    Saved(HostSnapshot),
    Snapshots(Vec<HostSnapshot>),
    Sealed(Sealed),
    SnapshotCopies(Vec<SnapshotCopies>),
    Collected(Collected),
    Layers(Vec<String>),
}

/// All that the front needs to start; it reads no file but its own database.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The host's time, in milliseconds: deadlines go by it, in the front too.
    pub now: u64,
    pub settings: FrontSettings,
    pub sandboxes: Vec<HostSandbox>,
    pub templates: Vec<HostTemplate>,
}

/// What a template build begins with that names an image which is not on this host, where something near it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TemplateImages {
    /// What is near, and its log says so.
    Alias,
    /// Nothing: it fails.
    Strict,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FrontSettings {
    /// For each descriptor that came along: the address it listens on.
    pub listeners: Vec<String>,
    /// The configured domain, if any.
    pub domain: Option<String>,
    /// PEM texts of certificate chain and key; both or neither.
    pub tls_cert_pem: Option<String>,
    pub tls_key_pem: Option<String>,
    /// Secrets of the default team, from `credentials.json`.
    pub api_key: String,
    pub access_token: String,
    pub admin_token: String,
    /// Hex of 32 bytes: the key of the HMACs that make envd and traffic tokens.
    pub token_seed: String,
    /// Where the records are, when they are in PostgreSQL. The front reaches it by [`Request::DialDatabase`] only.
    pub database_url: Option<String>,
    /// The longest life of a sandbox, in hours.
    pub max_sandbox_hours: u64,
    /// Concurrent sandboxes of the default team.
    pub max_sandboxes: u32,
    /// Requests under way into the ports of one sandbox, and as many to its envd.
    pub max_requests: u32,
    pub template_images: TemplateImages,
    /// Seconds for which a build is kept that has no tag any more.
    pub keep_builds: u64,
    /// How often a team may ask each route, as JSON.
    pub rate_limits: Option<String>,
    /// Where figures are told; its descriptor comes after those of `listeners`.
    pub admin_listener: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Created {
    pub started_at: u64,
    /// Hex key: HMAC-SHA256 of an `/init` body with it authorises a change of the token.
    pub init_secret: String,
    /// Whether its processes go on from a snapshot: the one that was asked for, or the one that its build has ended with.
    #[serde(default)]
    pub restored: bool,
}

/// A live sandbox as the host sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostSandbox {
    pub sandbox_id: String,
    pub epoch: u64,
    pub build_id: String,
    pub started_at: u64,
    pub deadline: u64,
    pub egress: Egress,
}

/// Counters of a live sandbox; sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostUsage {
    pub sandbox_id: String,
    /// Processor time since its slot was made.
    pub cpu_micros: u64,
    /// Without the page cache.
    pub memory: u64,
    pub cache: u64,
    pub processes: u64,
    /// Zero where nothing counts it.
    pub disk: u64,
    /// As the sandbox sees it.
    pub received: u64,
    pub sent: u64,
    /// Programs that the kernel has ended because the memory limit was reached.
    pub oom_kills: u64,
}

/// Whether a host takes new sandboxes; only a ready one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeStatus {
    Ready,
    Draining,
    Unhealthy,
    Standby,
}

/// A host; sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub id: String,
    /// Another one after each start of the agent.
    pub instance: String,
    pub status: NodeStatus,
    pub status_changed_at: u64,
    pub sandboxes: u32,
    pub starting: u32,
    /// Since the agent's start.
    pub create_successes: u64,
    pub create_fails: u64,
    /// Of the successes, those that began in a slot whose daemon ran already.
    #[serde(default)]
    pub creates_ahead: u64,
    /// Such slots that are in stock.
    #[serde(default)]
    pub slots_ahead: u64,
    pub version: String,
    /// Empty where the build does not know it.
    pub commit: String,
    pub cpu_family: String,
    pub cpu_model: String,
    pub cpu_model_name: String,
    pub cpu_architecture: String,
    pub cpu_count: u32,
    /// Of all processors together, since the last time that somebody asked.
    pub cpu_percent: u32,
    pub memory_used: u64,
    pub memory_total: u64,
    pub huge_pages_total: u64,
    pub huge_pages_used: u64,
    pub huge_pages_reserved: u64,
    pub huge_page_size: u64,
    pub disks: Vec<NodeDisk>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDisk {
    pub mount_point: String,
    pub device: String,
    pub filesystem: String,
    pub used: u64,
    pub total: u64,
}

/// A template version in the host's pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTemplate {
    /// The alias, such as `base`.
    pub name: String,
    pub template_id: String,
    pub build_id: String,
    /// Unix milliseconds of the build.
    pub built_at: u64,
    /// Digests of the layers, lowest first.
    pub layers: Vec<String>,
    pub cpu_count: u32,
    pub memory_mib: u64,
    pub disk_mib: u64,
    pub default_user: String,
    pub default_workdir: String,
    #[serde(default)]
    pub inherited: Inherited,
}

/// What a build hands on to builds that begin from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    /// Of the build's steps; sandboxes do not see it.
    pub env: BTreeMap<String, String>,
    /// What is started in every new sandbox, and what then tells that it is ready.
    pub start_command: Option<String>,
    pub ready_command: Option<String>,
    /// A snapshot of a sandbox of this build in which the start command runs and is ready; not handed on. Where it is of use, sandboxes of
    /// the build go on from it.
    #[serde(default)]
    pub started: Option<String>,
}

/// Things that happen on the host without a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// A sandbox ended other than by a [`Request::Kill`] of that epoch; `cause` is a name of `DeathCause`.
    Exited {
        sandbox_id: String,
        epoch: u64,
        cause: String,
    },
    /// At its deadline a sandbox was paused by the host itself.
    Paused(HostSnapshot),
}

/// Why the host did not do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct HostError {
    pub kind: HostErrorKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostErrorKind {
    /// No such live sandbox here.
    NotFound,
    /// The command is of an older epoch than the sandbox.
    StaleEpoch,
    /// The sandbox is being started or is ending: there is nothing to change.
    NotLive,
    /// The sandbox is being paused: there is nothing to change.
    BeingPaused,
    /// The ID is in use.
    AlreadyExists,
    /// Nothing listens on the port.
    PortClosed,
    /// The build's layers are not in the pool.
    TemplateMissing,
    /// Slots, disk reserve or memory are used up; nothing was changed.
    NoCapacity,
    /// The host takes no new sandboxes for now; nothing was changed.
    NotReady,
    /// The step named in the message failed; nothing is left of the sandbox.
    Failed,
    /// This host cannot do it at all; the message says what is missing.
    Unsupported,
    /// The snapshot cannot be made, for the reason in the message; the sandbox goes on.
    CannotSave,
    /// The sandbox is being ended, since its processes may be damaged; after a save, the message says by what.
    Lost,
    /// No such snapshot here.
    SnapshotMissing,
    /// The snapshot is not this installation's, was changed, or is of a machine that this one is not like.
    SnapshotRefused,
}
