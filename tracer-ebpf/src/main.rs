//! The probes: every write, write-zeroes and discard of one disk's sector range, at submission and at completion.
//!
//! Each hook stands here once for every rung of the ladder (tp_btf, raw_tp, tracepoint); the loader attaches one
//! rung's, and of these the request-based or the bio-based ones. What a hook means is in docs/OPERATIONS.md.
#![no_std]
// The BPF targets have atomic adds and ors but no compare-and-swap, so `AtomicU64` lacks its methods there.
#![expect(internal_features)]
#![feature(core_intrinsics)]
#![no_main]

mod calibrate;
mod kernel;
mod payload;
mod report;
mod set_by_loader;
mod settings;

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint, tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext, TracePointContext};
use aya_log_ebpf::warn;
use tracer_common::counter;

use kernel::Unreadable;

/// Counts a failed read of kernel memory: user space then compares the whole volume.
fn settle<C: EbpfContext>(ctx: &C, hook: &'static str, result: Result<(), Unreadable>) {
    if result.is_err() {
        report::count(counter::READ_FAILED);
        warn!(ctx, "{}: kernel memory could not be read", hook);
    }
}

macro_rules! hook {
    ($btf:ident, $raw:ident, $tracepoint:literal, |$ctx:ident, $memory:ident| $body:expr) => {
        #[btf_tracepoint(function = $tracepoint)]
        pub fn $btf($ctx: BtfTracePointContext) -> i32 {
            type $memory = kernel::Typed;
            settle(&$ctx, $tracepoint, $body);
            0
        }

        #[raw_tracepoint(tracepoint = $tracepoint)]
        pub fn $raw($ctx: RawTracePointContext) -> i32 {
            type $memory = kernel::Any;
            settle(&$ctx, $tracepoint, $body);
            0
        }
    };
}

// The arguments are those of include/trace/events/block.h, the same from 6.1 to 6.18.
hook!(rq_issue_btf, rq_issue_raw, "block_rq_issue", |ctx, M| report::request_issued::<M>(ctx.arg(0)));
hook!(rq_complete_btf, rq_complete_raw, "block_rq_complete", |ctx, M| {
    report::request_completed::<M>(ctx.arg(0), ctx.arg::<u64>(1) as u8, ctx.arg::<u64>(2) as u32)
});
hook!(calibrate_btf, calibrate_raw, "block_rq_issue", |ctx, M| calibrate::calibrate(ctx.arg(0)));
hook!(bio_queue_btf, bio_queue_raw, "block_bio_queue", |ctx, M| report::bio_queued::<M>(ctx.arg(0)));
hook!(bio_complete_btf, bio_complete_raw, "block_bio_complete", |ctx, M| report::bio_completed::<M>(
    ctx.arg(1)
));

#[tracepoint(category = "block", name = "block_bio_queue")]
pub fn bio_queue_tp(ctx: TracePointContext) -> u32 {
    settle(&ctx, "block_bio_queue", report::formatted_submit(&ctx));
    0
}

#[tracepoint(category = "block", name = "block_rq_complete")]
pub fn rq_complete_tp(ctx: TracePointContext) -> u32 {
    settle(&ctx, "block_rq_complete", report::formatted_complete(&ctx));
    0
}

#[tracepoint(category = "block", name = "block_bio_complete")]
pub fn bio_complete_tp(ctx: TracePointContext) -> u32 {
    settle(&ctx, "block_bio_complete", report::formatted_complete(&ctx));
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
