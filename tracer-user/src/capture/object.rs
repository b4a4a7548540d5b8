//! The BPF object inside this binary, looked at as an ELF file: is it what the loader expects?

use object::{Object, ObjectSection, ObjectSymbol};
use serde::Serialize;

use crate::capture::CaptureError;

/// Compiled by the build script from `tracer-ebpf`.
pub static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes.bpf.o"));

pub const PROGRAMS: [&str; 13] = [
    "rq_issue_btf",
    "rq_complete_btf",
    "bio_queue_btf",
    "bio_complete_btf",
    "rq_issue_raw",
    "rq_complete_raw",
    "bio_queue_raw",
    "bio_complete_raw",
    "bio_queue_tp",
    "rq_complete_tp",
    "bio_complete_tp",
    "calibrate_btf",
    "calibrate_raw",
];
pub const MAPS: [&str; 7] =
    ["EVENTS", "DIRTY", "COUNTERS", "LEDGER", "SESSION", "FORMAT_DEVS", "CALIBRATION"];

/// What `doctor` shows of the embedded object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectReport {
    pub bytes: usize,
    pub programs: Vec<String>,
    pub maps: Vec<String>,
    pub license: String,
    pub btf_bytes: u64,
}

/// Fails when a program, map, the licence or the BTF that the loader counts on is missing.
pub fn inspect_embedded() -> Result<ObjectReport, CaptureError> {
    inspect(EMBEDDED)
}

fn inspect(elf: &[u8]) -> Result<ObjectReport, CaptureError> {
    let wrong = |what: String| CaptureError::Object(what);
    let file = object::File::parse(elf).map_err(|error| wrong(error.to_string()))?;
    if file.architecture() != object::Architecture::Bpf {
        return Err(wrong(format!("it is an ELF for {:?}", file.architecture())));
    }
    let in_sections = |wanted: fn(&str) -> bool| -> Vec<String> {
        let mut names: Vec<String> = file
            .symbols()
            .filter(|symbol| symbol.is_global())
            .filter_map(|symbol| {
                let section = file.section_by_index(symbol.section_index()?).ok()?;
                wanted(section.name().ok()?).then(|| symbol.name().ok().map(str::to_owned))?
            })
            .collect();
        names.sort();
        names
    };
    let programs = in_sections(|name| {
        ["tp_btf/", "raw_tp/", "tracepoint/"].iter().any(|prefix| name.starts_with(prefix))
    });
    let maps = in_sections(|name| name == "maps" || name == ".maps");
    for (kind, expected, found) in
        [("program", PROGRAMS.as_slice(), &programs), ("map", MAPS.as_slice(), &maps)]
    {
        if let Some(missing) = expected.iter().find(|name| !found.iter().any(|f| f == *name)) {
            return Err(wrong(format!("the {kind} {missing} is missing")));
        }
    }
    let license = file
        .section_by_name("license")
        .and_then(|section| section.data().ok())
        .map(|data| String::from_utf8_lossy(data).trim_end_matches('\0').to_owned())
        .ok_or_else(|| wrong("it has no licence section".into()))?;
    if !license.contains("GPL") {
        return Err(wrong(format!(
            "its licence is {license:?}, the helpers we call need one that includes GPL"
        )));
    }
    let btf_bytes = file.section_by_name(".BTF").map_or(0, |section| section.size());
    if btf_bytes == 0 {
        return Err(wrong("it has no BTF".into()));
    }
    Ok(ObjectReport { bytes: elf.len(), programs, maps, license, btf_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_object_has_all_programs_maps_licence_and_btf() {
        let report = inspect_embedded().unwrap();
        assert_eq!(report.license, "Dual MIT/GPL");
        assert_eq!(report.programs.len(), PROGRAMS.len(), "{:?}", report.programs);
    }

    #[test]
    fn another_file_is_refused() {
        assert!(inspect(b"not an ELF").is_err());
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(inspect(&own).unwrap_err().to_string().contains("X86_64"));
    }
}
