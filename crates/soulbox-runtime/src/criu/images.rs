//! The images of a dump, made fit for another slot: all but one are the same files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use prost::Message;

/// Before the first message: two numbers that tell the kind of image.
const MAGIC: usize = 8;
const LENGTH: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    #[error("failed to {step} `{path}`")]
    File {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{0}` is no image of a user namespace of ours")]
    NotOurs(PathBuf),
}

#[derive(Clone, PartialEq, Message)]
struct UserNamespace {
    #[prost(message, repeated, tag = "1")]
    users: Vec<Extent>,
    #[prost(message, repeated, tag = "2")]
    groups: Vec<Extent>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Extent {
    #[prost(uint32, required, tag = "1")]
    first: u32,
    #[prost(uint32, required, tag = "2")]
    outside: u32,
    #[prost(uint32, required, tag = "3")]
    count: u32,
}

/// Makes the new folder `to` with the images of `from`, linked, so that a tree restored from it has the host's IDs from `id_base`.
/// The same file system has both.
///
/// # Errors
/// See [`ImagesError`]; `to` may be left half made.
pub fn remap(from: &Path, to: &Path, id_base: u32) -> Result<(), ImagesError> {
    let failed = |step: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| ImagesError::File { step, path, source }
    };
    fs::create_dir(to).map_err(failed("make", to))?;
    for entry in fs::read_dir(from).map_err(failed("look through", from))? {
        let entry = entry.map_err(failed("look through", from))?;
        let (path, name) = (entry.path(), entry.file_name());
        let target = to.join(&name);
        let text = name.to_string_lossy();
        if text.starts_with("userns-") {
            let bytes = fs::read(&path).map_err(failed("read", &path))?;
            let moved = moved(&bytes, id_base).ok_or(ImagesError::NotOurs(path))?;
            fs::write(&target, moved).map_err(failed("write", &target))?;
        } else if text.ends_with(".img") {
            fs::hard_link(&path, &target).map_err(failed("link", &target))?;
        }
    }
    Ok(())
}

/// The image with every range at `id_base`. `None` when it is not one range of IDs from 0 for users and groups each.
fn moved(image: &[u8], id_base: u32) -> Option<Vec<u8>> {
    let (head, rest) = image.split_at_checked(MAGIC)?;
    let (length, body) = rest.split_at_checked(LENGTH)?;
    if u32::from_ne_bytes(length.try_into().ok()?) as usize != body.len() {
        return None;
    }
    let mut namespace = UserNamespace::decode(body).ok()?;
    for extents in [&mut namespace.users, &mut namespace.groups] {
        let [extent] = extents.as_mut_slice() else {
            return None;
        };
        if extent.first != 0 {
            return None;
        }
        extent.outside = id_base;
    }
    let body = namespace.encode_to_vec();
    let length = u32::try_from(body.len()).ok()?.to_ne_bytes();
    Some([head, &length, &body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(extents: &[(u32, u32, u32)]) -> Vec<u8> {
        let extents: Vec<_> = extents
            .iter()
            .map(|(first, outside, count)| Extent {
                first: *first,
                outside: *outside,
                count: *count,
            })
            .collect();
        let body = UserNamespace {
            users: extents.clone(),
            groups: extents,
        }
        .encode_to_vec();
        let length = u32::try_from(body.len()).unwrap().to_ne_bytes();
        [&b"magicmag"[..], &length, &body].concat()
    }

    #[test]
    fn the_range_moves_and_nothing_else() {
        let moved = moved(&image(&[(0, 0x7000_0000, 65536)]), 0x7001_0000).unwrap();
        assert_eq!(moved, image(&[(0, 0x7001_0000, 65536)]));
    }

    #[test]
    fn other_images_are_refused() {
        assert_eq!(moved(b"short", 1), None);
        assert_eq!(moved(&image(&[]), 1), None);
        assert_eq!(moved(&image(&[(1000, 5, 10)]), 1), None);
        assert_eq!(moved(&image(&[(0, 5, 10), (10, 50, 10)]), 1), None);
        let mut cut = image(&[(0, 5, 10)]);
        cut.pop();
        assert_eq!(moved(&cut, 1), None);
    }
}
