//! The tracepoint rung's layout: where the fields of the formatted block tracepoints stand.

use std::path::{Path, PathBuf};

use crate::capture::CaptureError;

/// Where tracefs is mounted, if it is.
pub fn find() -> Option<PathBuf> {
    ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .into_iter()
        .map(PathBuf::from)
        .find(|root| root.join("events/block").is_dir())
}

/// Offsets in bytes of the fields, by the name of the probes' setting.
pub struct FormatLayout {
    pub offsets: Vec<(&'static str, u32)>,
}

impl FormatLayout {
    /// `complete` is the tracepoint used at completion, `block_rq_complete` or `block_bio_complete`.
    pub fn read(tracefs: &Path, complete: &str) -> Result<FormatLayout, CaptureError> {
        let queue = Format::read(tracefs, "block_bio_queue")?;
        let complete = Format::read(tracefs, complete)?;
        for shared in ["dev", "sector", "nr_sector"] {
            if queue.offset(shared)? != complete.offset(shared)? {
                return Err(complete.lacks(shared));
            }
        }
        Ok(FormatLayout {
            offsets: vec![
                ("FORMAT_DEV", queue.offset("dev")?),
                ("FORMAT_SECTOR", queue.offset("sector")?),
                ("FORMAT_NR_SECTOR", queue.offset("nr_sector")?),
                ("FORMAT_QUEUE_RWBS", queue.offset("rwbs")?),
                ("FORMAT_COMPLETE_RWBS", complete.offset("rwbs")?),
                ("FORMAT_COMPLETE_ERROR", complete.offset("error")?),
            ],
        })
    }
}

struct Format {
    path: PathBuf,
    text: String,
}

impl Format {
    fn read(tracefs: &Path, event: &str) -> Result<Format, CaptureError> {
        let path = tracefs.join("events/block").join(event).join("format");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Format { path, text }),
            Err(_) => Err(CaptureError::Format { path: path.display().to_string(), field: "any".into() }),
        }
    }

    fn lacks(&self, field: &str) -> CaptureError {
        CaptureError::Format { path: self.path.display().to_string(), field: field.into() }
    }

    fn offset(&self, field: &str) -> Result<u32, CaptureError> {
        parse_offset(&self.text, field).ok_or_else(|| self.lacks(field))
    }
}

/// A line is `field:TYPE NAME; offset:N; size:N; signed:N;` with tabs between, NAME perhaps with `[N]`.
fn parse_offset(text: &str, field: &str) -> Option<u32> {
    text.lines().filter_map(|line| line.trim().strip_prefix("field:")).find_map(|line| {
        let mut parts = line.split(';').map(str::trim);
        let name = parts.next()?.rsplit(' ').next()?;
        let name = name.split('[').next()?;
        if name != field {
            return None;
        }
        parts.next()?.strip_prefix("offset:")?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RQ_COMPLETE_6_18: &str = "\
name: block_rq_complete
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:sector_t sector;	offset:16;	size:8;	signed:0;
	field:unsigned int nr_sector;	offset:24;	size:4;	signed:0;
	field:int error;	offset:28;	size:4;	signed:1;
	field:unsigned short ioprio;	offset:32;	size:2;	signed:0;
	field:char rwbs[10];	offset:34;	size:10;	signed:0;
	field:__data_loc char[] cmd;	offset:44;	size:4;	signed:0;
";

    #[test]
    fn fields_are_found_by_their_whole_name() {
        assert_eq!(parse_offset(RQ_COMPLETE_6_18, "sector"), Some(16));
        assert_eq!(parse_offset(RQ_COMPLETE_6_18, "nr_sector"), Some(24));
        assert_eq!(parse_offset(RQ_COMPLETE_6_18, "rwbs"), Some(34));
        assert_eq!(parse_offset(RQ_COMPLETE_6_18, "comm"), None);
    }
}
