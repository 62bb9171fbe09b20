//! Which contexts there are, in the order in which they were made; the default ones, made when they are needed.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::context::Context;
use crate::language::{Language, UnknownLanguage};
use crate::launch::{LaunchError, Launcher};

/// Each is a process.
const MOST: usize = 256;
const DEFAULT_CWD: &str = "/home/user";
/// Has another text after each copy of the sandbox; not there before the first.
const GENERATION: &str = "/run/soulbox/generation";

#[derive(Debug, thiserror::Error)]
pub(crate) enum ContextError {
    #[error("Context {0} not found")]
    NotFound(String),
    #[error(transparent)]
    Language(#[from] UnknownLanguage),
    #[error("Failed to set working directory")]
    Cwd,
    #[error("there are {MOST} contexts already")]
    TooMany,
    #[error("there are no random numbers: {0}")]
    Random(getrandom::Error),
    #[error("the kernel of `{language}` does not start")]
    Launch {
        language: Language,
        #[source]
        source: LaunchError,
    },
}

/// All contexts of the sandbox.
#[derive(Debug)]
pub struct Contexts {
    launcher: Arc<Launcher>,
    cwd: String,
    made: Mutex<Vec<Arc<Context>>>,
    defaults: Mutex<HashMap<Language, Default>>,
    prepared: watch::Sender<bool>,
    /// Contexts that no code has run in, and the generation that they were made in.
    unused: AsyncMutex<HashMap<String, String>>,
}

/// Held while the context is made, so that there is one of a language however many ask for it at once.
type Default = Arc<AsyncMutex<Option<Arc<Context>>>>;

impl Contexts {
    pub fn new(launcher: Launcher) -> Self {
        // A template may have moved its user.
        let cwd = if Path::new(DEFAULT_CWD).is_dir() {
            DEFAULT_CWD
        } else {
            "/"
        };
        Self {
            launcher: Arc::new(launcher),
            cwd: cwd.to_owned(),
            made: Mutex::default(),
            defaults: Mutex::default(),
            prepared: watch::Sender::new(false),
            unused: AsyncMutex::default(),
        }
    }

    /// Makes the contexts that clients expect to be there. Where one cannot be made, whoever uses it hears why.
    pub async fn prepare(&self) {
        let generation = generation();
        let (python, javascript) = tokio::join!(
            self.start(Language::Python, &self.cwd),
            self.start(Language::JavaScript, &self.cwd)
        );
        for (language, context) in [
            (Language::Python, python),
            (Language::JavaScript, javascript),
        ] {
            if let Ok(context) = context {
                let context = Arc::new(context);
                let mut unused = self.unused.lock().await;
                unused.insert(context.id.clone(), generation.clone());
                drop(unused);
                *self.default_of(&language).lock().await = Some(Arc::clone(&context));
                self.lock().push(context);
            }
        }
        self.prepared.send_replace(true);
    }

    /// Waits for [`Contexts::prepare`].
    pub(crate) async fn prepared(&self) {
        let mut prepared = self.prepared.subscribe();
        // The sender is `self`'s.
        _ = prepared.wait_for(|done| *done).await;
    }

    /// To be called before each execution in the context. A kernel that nobody has used is replaced when its process was copied: the new one
    /// has the sandbox's variables, and generators of its own, which those of Node could not get otherwise.
    pub(crate) async fn use_for_code(&self, context: &Context) -> Result<(), ContextError> {
        // Held until it is replaced: whoever comes meanwhile waits for that.
        let mut unused = self.unused.lock().await;
        match unused.remove(&context.id) {
            Some(made_in) if made_in != generation() => self.restart(&context.id).await,
            _ => Ok(()),
        }
    }

    pub(crate) fn list(&self) -> Vec<Arc<Context>> {
        self.lock().clone()
    }

    pub(crate) fn find(&self, id: &str) -> Result<Arc<Context>, ContextError> {
        self.lock()
            .iter()
            .find(|context| context.id == id)
            .cloned()
            .ok_or_else(|| ContextError::NotFound(id.to_owned()))
    }

    /// The default context of a language.
    pub(crate) async fn of_language(
        &self,
        language: Language,
    ) -> Result<Arc<Context>, ContextError> {
        let default = self.default_of(&language);
        let mut default = default.lock().await;
        if let Some(context) = default.as_ref()
            && self.find(&context.id).is_ok()
        {
            return Ok(Arc::clone(context));
        }
        let context = self.create(language, None).await?;
        *default = Some(Arc::clone(&context));
        Ok(context)
    }

    pub(crate) async fn create(
        &self,
        language: Language,
        cwd: Option<&str>,
    ) -> Result<Arc<Context>, ContextError> {
        let cwd = cwd.filter(|cwd| !cwd.is_empty()).unwrap_or(&self.cwd);
        if !Path::new(cwd).is_dir() {
            return Err(ContextError::Cwd);
        }
        if self.lock().len() >= MOST {
            return Err(ContextError::TooMany);
        }
        let context = Arc::new(self.start(language, cwd).await?);
        self.lock().push(Arc::clone(&context));
        Ok(context)
    }

    async fn start(&self, language: Language, cwd: &str) -> Result<Context, ContextError> {
        Context::start(
            Arc::clone(&self.launcher),
            new_id()?,
            language.clone(),
            cwd.to_owned(),
        )
        .await
        .map_err(|source| ContextError::Launch { language, source })
    }

    fn default_of(&self, language: &Language) -> Default {
        Arc::clone(
            self.defaults
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(language.clone())
                .or_default(),
        )
    }

    pub(crate) async fn restart(&self, id: &str) -> Result<(), ContextError> {
        let context = self.find(id)?;
        context
            .restart()
            .await
            .map_err(|source| ContextError::Launch {
                language: context.language.clone(),
                source,
            })
    }

    pub(crate) async fn remove(&self, id: &str) -> Result<(), ContextError> {
        let context = self.find(id)?;
        self.lock().retain(|other| other.id != id);
        context.remove().await;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Context>>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn generation() -> String {
    fs::read_to_string(GENERATION).unwrap_or_default()
}

/// A random UUID (RFC 9562, version 4).
fn new_id() -> Result<String, ContextError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(ContextError::Random)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_random_uuids() {
        let (one, other) = (new_id().unwrap(), new_id().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.len(), 36);
        assert_eq!(&one[14..15], "4", "{one}");
    }
}
