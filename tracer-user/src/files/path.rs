use crate::files::{FileSystem, FsError, Node};
use crate::model::NodeKind;

/// Why a path leads to nothing.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    #[error(transparent)]
    Fs(#[from] FsError),
    #[error(
        "there is no {} at this point. `afterwrite files JOURNAL --to POINT --recursive` lists what there is, `afterwrite log` \
         when it was changed", path.escape_ascii()
    )]
    NotFound { path: Vec<u8> },
    #[error("{} is not a directory at this point", path.escape_ascii())]
    NotADirectory { path: Vec<u8> },
    #[error(
        "{} is a symbolic link to {} at this point, and none is followed; name the path it leads to",
        path.escape_ascii(), target.escape_ascii()
    )]
    Symlink { path: Vec<u8>, target: Vec<u8> },
    #[error("the path {} has \"..\" in it; name it from the file system's root", path.escape_ascii())]
    Upwards { path: Vec<u8> },
}

/// What a path from the file system's root leads to. Follows no symbolic link.
pub fn find<F: FileSystem>(fs: &mut F, path: &[u8]) -> Result<(F::Handle, Node), PathError> {
    let mut handle = fs.root();
    let mut node = fs.node(&handle)?;
    let mut at = Vec::new();
    for name in names(path)? {
        match node.attributes.kind() {
            NodeKind::Dir => {}
            NodeKind::Symlink => {
                return Err(PathError::Symlink { path: at, target: node.attributes.link_target });
            }
            _ => return Err(PathError::NotADirectory { path: at }),
        }
        let found = fs.entries(&handle)?.into_iter().find(|(there, _)| there == name);
        at = joined(&at, name);
        let Some((_, found)) = found else { return Err(PathError::NotFound { path: at }) };
        node = fs.node(&found)?;
        handle = found;
    }
    Ok((handle, node))
}

/// The same path written in one way, `/` for the root.
pub fn normal(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let names = names(path)?;
    Ok(if names.is_empty() {
        b"/".to_vec()
    } else {
        names.iter().fold(Vec::new(), |at, name| joined(&at, name))
    })
}

pub fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let dir = if dir == b"/" { &[] } else { dir };
    [dir, b"/", name].concat()
}

fn names(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    let names: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b".")).collect();
    match names.contains(&&b".."[..]) {
        true => Err(PathError::Upwards { path: path.to_vec() }),
        false => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_written_in_one_way_and_does_not_go_upwards() {
        for (path, wanted) in
            [("", "/"), ("/", "/"), ("etc", "/etc"), ("//etc/./fstab/", "/etc/fstab"), ("/a/...", "/a/...")]
        {
            assert_eq!(normal(path.as_bytes()).unwrap(), wanted.as_bytes());
        }
        assert!(matches!(normal(b"/a/../b"), Err(PathError::Upwards { .. })));
    }
}
