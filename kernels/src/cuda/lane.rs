//! A queue of work on a card: bands are copied in, folded round after round, hashed, copied out.

use std::{ops::Range, sync::Arc};

use cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg,
    sys::CUresult,
};

use super::{
    CudaError, Gpu,
    launch::{self, FoldAddresses, Launch, NONE},
};
use crate::{
    Band, Contribution, Findings, Step, bytes as f32_bytes, check,
    sha256::{Digest32, sha256},
};

/// Bytes of a piece, the unit of hashing.
pub const PIECE_BYTES: u64 = 1 << 16;

const DIGEST_BYTES: u64 = size_of::<Digest32>() as u64;
/// What the parts of a lane's memory begin with a multiple of.
const ALIGNED: u64 = 256;

/// A round, as a lane applies it to a band.
#[derive(Clone, Debug)]
pub struct Round<'a> {
    /// What the miners sent, in ledger order; nothing is folded if nobody did.
    pub contributions: Vec<Contribution<'a>>,
    /// How to step.
    pub step: Step,
    /// Whether the state is stepped. Else it is only looked for what is not finite.
    pub apply: bool,
}

/// Which of a tensor's bytes a band is, so that pieces are cut as the tensor's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where the band starts.
    pub offset: u64,
    /// Whether the tensor ends with it.
    pub last: bool,
}

/// What a round made of a band.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Elements are counted within the band.
    pub findings: Findings,
    /// The bytes before the first piece that starts in the band.
    pub head: Vec<u8>,
    /// Of each whole piece, and of the tensor's last one.
    pub digests: Vec<Digest32>,
    /// The bytes after the last whole piece; none if the tensor ends here.
    pub tail: Vec<u8>,
    /// The RFC 6962 root of the digests, if the band is a whole tensor.
    pub root: Option<Digest32>,
}

/// Threads of a thread block of each kernel, 1 to 1,024. They change the speed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// Of the fold.
    pub fold: u32,
    /// Of the hashing of pieces, and of the rounding to bf16.
    pub hash: u32,
    /// Of the tree above the pieces.
    pub tree: u32,
}

impl Default for Threads {
    fn default() -> Self {
        Self { fold: 256, hash: 128, tree: 256 }
    }
}

/// A queue of work on a card, with memory of its own there.
pub struct Lane<'g> {
    gpu: &'g Gpu,
    stream: Arc<CudaStream>,
    memory: Option<CudaSlice<u8>>,
    threads: Threads,
}

impl<'g> Lane<'g> {
    /// A lane without memory yet.
    ///
    /// # Errors
    ///
    /// [`CudaError::Failed`].
    pub fn new(gpu: &'g Gpu, threads: Threads) -> Result<Self, CudaError> {
        let stream = gpu.context.new_stream().map_err(|error| gpu.failed(error))?;
        Ok(Self { gpu, stream, memory: None, threads })
    }

    /// Folds `rounds` onto `state`, one after the other, and hashes what each made of it.
    ///
    /// `state` becomes the state after the last round if `wanted`, and stays as it is otherwise: then
    /// only digests cross the bus. Copies run beside other lanes' work where `state` and the rows lie in
    /// [`Gpu::floats`]. Memory on the card: [`memory_bytes`].
    ///
    /// # Errors
    ///
    /// The error of the reference for the first round that has one, and what befalls a card. `state` is
    /// unspecified then.
    pub fn fold(
        &mut self,
        band: &Band,
        span: Span,
        rounds: &[Round<'_>],
        state: &mut [f32],
        wanted: bool,
    ) -> Result<Vec<Made>, CudaError> {
        let mut out = Fetched::default();
        let mut held = self.take(band, span, rounds, state)?;
        let queued = (0..rounds.len()).try_for_each(|round| {
            held.queue_fold(round)?;
            held.queue_hash(round)?;
            held.fetch_ends(&mut out)
        });
        let queued = queued.and_then(|()| held.fetch(&mut out));
        let queued = queued.and_then(|()| if wanted { held.fetch_state(state) } else { Ok(()) });
        // Before the borrows end, all that was queued has to: also where queueing failed.
        held.wait()?;
        queued?;
        held.fault(rounds, &out)?;
        Ok(held.made(out))
    }

    /// Brings a band and its rounds to the card and leaves them there, to be worked on again and again.
    ///
    /// # Errors
    ///
    /// As [`Lane::fold`].
    pub fn hold<'l>(
        &'l mut self,
        band: &Band,
        rounds: &[Round<'_>],
        state: &[f32],
    ) -> Result<Held<'l, 'g>, CudaError> {
        let held = self.take(band, Span { offset: 0, last: true }, rounds, state)?;
        held.wait()?;
        Ok(held)
    }

    /// `values` rounded to bf16.
    ///
    /// # Errors
    ///
    /// What befalls a card.
    pub fn to_bf16(&mut self, values: &[f32]) -> Result<Vec<u16>, CudaError> {
        let (count, bytes) = (values.len() as u64, size_of_val(values) as u64);
        let out = bytes.next_multiple_of(ALIGNED);
        let start = self.reserve(out + bytes / 2)?;
        let launch = launch::to_bf16(start, start + out, count, self.threads.hash);
        let mut rounded = vec![0u8; values.len() * 2];
        let queued = self
            .copy_in(0, f32_bytes::of_f32(values))
            .and_then(|()| self.launch(&self.gpu.kernels.to_bf16, &launch, self.threads.hash))
            .and_then(|()| self.copy_out(out, &mut rounded));
        self.wait()?;
        queued?;
        Ok(rounded.as_chunks().0.iter().map(|&pair| u16::from_le_bytes(pair)).collect())
    }

    /// Fills the lane's memory with bytes that mean nothing. What it does must not depend on them.
    ///
    /// # Errors
    ///
    /// What befalls a card.
    pub fn poison(&mut self, byte: u8) -> Result<(), CudaError> {
        let bytes = vec![byte; self.memory.as_ref().map_or(0, CudaSlice::len)];
        let queued = self.copy_in(0, &bytes);
        self.wait()?;
        queued
    }

    /// Queues a band's state and rows for the card. What is borrowed must live until [`Held::wait`].
    fn take<'l>(
        &'l mut self,
        band: &Band,
        span: Span,
        rounds: &[Round<'_>],
        state: &[f32],
    ) -> Result<Held<'l, 'g>, CudaError> {
        let refused = |round| move |source| CudaError::Kernel { round, source };
        band.validate().map_err(refused(0))?;
        for (number, round) in rounds.iter().enumerate() {
            check::lengths(band, &round.contributions).map_err(refused(number))?;
        }
        check::state(band, state).map_err(refused(0))?;
        let plan = Plan::new(band, span, rounds);
        let start = self.reserve(plan.bytes)?;
        let mut held = Held { lane: self, plan, start, uploads: Vec::new() };
        held.lane.copy_in(0, f32_bytes::of_f32(state))?;
        held.queue_rows(rounds)?;
        Ok(held)
    }

    /// Makes room for so many bytes, and says where it starts. What lay there before is gone.
    fn reserve(&mut self, bytes: u64) -> Result<u64, CudaError> {
        let enough = |memory: &CudaSlice<u8>| memory.len() as u64 >= bytes;
        if !self.memory.as_ref().is_some_and(enough) {
            self.memory = None; // Not both at a time.
            self.wait()?;
            let length = usize::try_from(bytes).map_err(|_| self.full(bytes))?;
            // SAFETY: what is read there was copied or written there before.
            let memory = unsafe { self.stream.alloc::<u8>(length) };
            self.memory = Some(memory.map_err(|error| match error.0 {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => self.full(bytes),
                _ => self.gpu.failed(error),
            })?);
        }
        Ok(self.memory.as_ref().map_or(0, |memory| memory.device_ptr(&self.stream).0))
    }

    fn full(&self, bytes: u64) -> CudaError {
        let free = self.gpu.free_bytes().unwrap_or(0);
        CudaError::Memory { ordinal: self.gpu.description.ordinal, bytes, free }
    }

    fn copy_in(&mut self, at: u64, bytes: &[u8]) -> Result<(), CudaError> {
        let Some(memory) = &mut self.memory else { return Ok(()) };
        let mut to = memory.slice_mut(range(at, bytes.len()));
        self.stream.memcpy_htod(bytes, &mut to).map_err(|error| self.gpu.failed(error))
    }

    fn copy_out(&self, at: u64, bytes: &mut [u8]) -> Result<(), CudaError> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let from = memory.slice(range(at, bytes.len()));
        self.stream.memcpy_dtoh(&from, bytes).map_err(|error| self.gpu.failed(error))
    }

    fn launch<A: Copy>(
        &self,
        kernel: &CudaFunction,
        launch: &Launch<A>,
        threads: u32,
    ) -> Result<(), CudaError> {
        if launch.blocks == 0 {
            return Ok(());
        }
        let grid = (launch.blocks, 1, 1);
        let shape =
            LaunchConfig { grid_dim: grid, block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
        let argument = Argument(launch.arguments);
        // SAFETY: the kernel takes this one argument, whose addresses are ranges of this lane's memory
        // that are as long as the shapes at the top of its source say.
        let launched = unsafe { self.stream.launch_builder(kernel).arg(&argument).launch(shape) };
        launched.map(drop).map_err(|error| self.gpu.failed(error))
    }

    /// Waits for all that was queued. After a failure nothing is under way any more either: a card's
    /// context that failed does nothing more.
    fn wait(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(|error| self.gpu.failed(error))
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        let _ = self.wait();
    }
}

fn range(at: u64, bytes: usize) -> Range<usize> {
    let at = usize::try_from(at).expect("it is within memory that was made");
    at..at + bytes
}

/// A kernel's argument, passed by value.
#[repr(transparent)]
struct Argument<A>(A);

// SAFETY: the arguments are plain numbers, laid out as C does.
unsafe impl<A: Copy> DeviceRepr for Argument<A> {}

// ---- a band on the card ----

/// Where in a lane's memory a band and what comes of it lie.
struct Plan {
    band: Band,
    span: Span,
    rounds: Vec<RoundPlan>,
    /// Bytes before the first piece, of pieces, and in all.
    head: u64,
    hashed: u64,
    state: u64,
    /// Pieces that are hashed.
    pieces: u64,
    found: u64,
    digests: u64,
    starts: u64,
    scratch: u64,
    roots: u64,
    bytes: u64,
}

struct RoundPlan {
    miners: usize,
    step: Step,
    apply: bool,
    index: u64,
    code: u64,
    level: u64,
}

impl Plan {
    fn new(band: &Band, span: Span, rounds: &[Round<'_>]) -> Self {
        let state = 4 * band.elements() as u64;
        let head = (span.offset.next_multiple_of(PIECE_BYTES) - span.offset).min(state);
        let whole = (state - head) / PIECE_BYTES * PIECE_BYTES;
        let hashed = if span.last { state - head } else { whole };
        let pieces = hashed.div_ceil(PIECE_BYTES);
        let mut end = 0;
        let mut room = |bytes: u64| {
            let start = end;
            end = (end + bytes).next_multiple_of(ALIGNED);
            start
        };
        room(state);
        let blocks = band.blocks() as u64;
        let of_round = |round: &Round<'_>, room: &mut dyn FnMut(u64) -> u64| {
            let miners = round.contributions.len() as u64;
            RoundPlan {
                miners: round.contributions.len(),
                step: round.step,
                apply: round.apply,
                index: room(miners * blocks * band.index_bytes_per_block() as u64),
                code: room(miners * blocks * band.code_bytes_per_block() as u64),
                level: room(miners * 4 * band.bins() as u64),
            }
        };
        let plans: Vec<_> = rounds.iter().map(|round| of_round(round, &mut room)).collect();
        let all = rounds.len() as u64 * pieces;
        let found = room(rounds.len() as u64 * 24);
        let digests = room(all * DIGEST_BYTES);
        let starts = room((rounds.len() as u64 + 1) * 8);
        let scratch = room(2 * all * DIGEST_BYTES);
        let roots = room(rounds.len() as u64 * DIGEST_BYTES);
        let band = *band;
        Self {
            band,
            span,
            rounds: plans,
            head,
            hashed,
            state,
            pieces,
            found,
            digests,
            starts,
            scratch,
            roots,
            bytes: end,
        }
    }

    /// Whether the roots are made on the card.
    fn whole(&self) -> bool {
        self.span == Span { offset: 0, last: true }
    }

    fn tail(&self) -> u64 {
        self.state - self.head - self.hashed
    }
}

/// Bytes that a lane takes on the card for a band and these rounds.
///
/// The band must be valid.
#[must_use]
pub fn memory_bytes(band: &Band, rounds: &[Round<'_>]) -> u64 {
    Plan::new(band, Span { offset: 0, last: true }, rounds).bytes
}

/// What comes back from the card, before it is looked at.
#[derive(Default)]
struct Fetched {
    found: Vec<u8>,
    digests: Vec<u8>,
    roots: Vec<u8>,
    /// Per round the bytes before the first piece and those after the last.
    ends: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A band and its rounds on a card.
pub struct Held<'l, 'g> {
    lane: &'l mut Lane<'g>,
    plan: Plan,
    /// The address of the lane's memory.
    start: u64,
    /// What was made for the card and may be under way.
    uploads: Vec<Vec<u8>>,
}

impl Held<'_, '_> {
    /// Applies a round to the state as it is now.
    ///
    /// # Errors
    ///
    /// What befalls a card.
    pub fn fold(&mut self, round: usize) -> Result<(), CudaError> {
        self.queue_fold(round)
    }

    /// Hashes the state's pieces, as of `round`.
    ///
    /// # Errors
    ///
    /// What befalls a card.
    pub fn hash(&mut self, round: usize) -> Result<(), CudaError> {
        self.queue_hash(round)
    }

    /// Copies the state in again.
    ///
    /// # Errors
    ///
    /// What befalls a card.
    pub fn set_state(&mut self, state: &[f32]) -> Result<(), CudaError> {
        let fits = check::state(&self.plan.band, state);
        fits.map_err(|source| CudaError::Kernel { round: 0, source })?;
        let queued = self.lane.copy_in(0, f32_bytes::of_f32(state));
        self.wait()?;
        queued
    }

    /// Copies the state back.
    ///
    /// # Errors
    ///
    /// What befalls a card.
    pub fn state(&mut self, state: &mut [f32]) -> Result<(), CudaError> {
        let fits = check::state(&self.plan.band, state);
        fits.map_err(|source| CudaError::Kernel { round: 0, source })?;
        let queued = self.fetch_state(state);
        self.wait()?;
        queued
    }

    /// Copies half of the state over the other half: what no kernel beats that reads and writes as much.
    ///
    /// # Errors
    ///
    /// What befalls a card.
    pub fn copy_half(&mut self) -> Result<(), CudaError> {
        let half = usize::try_from(self.plan.state / 2).expect("it is in memory");
        let Some(memory) = &mut self.lane.memory else { return Ok(()) };
        let (from, mut to) = memory.split_at_mut(half);
        let mut to = to.slice_mut(..half);
        let copied = self.lane.stream.memcpy_dtod(&from, &mut to);
        copied.map_err(|error| self.lane.gpu.failed(error))
    }

    /// Waits for all that was queued.
    ///
    /// # Errors
    ///
    /// What befalls a card.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.lane.wait()
    }

    /// Makes the roots of what [`Held::hash`] has hashed of every round.
    ///
    /// # Errors
    ///
    /// What befalls a card.
    pub fn roots(&mut self) -> Result<(), CudaError> {
        let Plan { digests, starts, scratch, roots, pieces, .. } = self.plan;
        if pieces == 0 {
            return Ok(());
        }
        let artifacts = u32::try_from(self.plan.rounds.len()).expect("a record is smaller");
        let at = |place| self.start + place;
        let all = u64::from(artifacts) * pieces;
        let launch = launch::tree(at(digests), at(starts), artifacts, at(scratch), all, at(roots));
        self.lane.launch(&self.lane.gpu.kernels.tree, &launch, self.lane.threads.tree)
    }

    fn queue_rows(&mut self, rounds: &[Round<'_>]) -> Result<(), CudaError> {
        for (number, round) in rounds.iter().enumerate() {
            let RoundPlan { mut index, mut code, level, .. } = self.plan.rounds[number];
            let mut levels = Vec::new();
            for sent in &round.contributions {
                self.lane.copy_in(index, sent.index)?;
                self.lane.copy_in(code, sent.code)?;
                index += sent.index.len() as u64;
                code += sent.code.len() as u64;
                levels.extend_from_slice(f32_bytes::of_f32(sent.levels));
            }
            self.upload(level, levels)?;
        }
        self.upload(self.plan.found, [0xff].repeat(24 * rounds.len()))?;
        let starts = (0..=rounds.len() as u64).map(|round| round * self.plan.pieces);
        let starts = starts.flat_map(u64::to_le_bytes).collect();
        self.upload(self.plan.starts, starts)
    }

    /// Copies bytes in and keeps them until they are there.
    fn upload(&mut self, at: u64, bytes: Vec<u8>) -> Result<(), CudaError> {
        self.uploads.push(bytes);
        let bytes = self.uploads.last().expect("it was pushed");
        self.lane.copy_in(at, bytes)
    }

    fn queue_fold(&mut self, number: usize) -> Result<(), CudaError> {
        let (start, round) = (self.start, &self.plan.rounds[number]);
        if round.miners == 0 {
            return Ok(());
        }
        let at = FoldAddresses {
            state: start,
            index: start + round.index,
            code: start + round.code,
            level: start + round.level,
            found: start + self.plan.found + 24 * number as u64,
        };
        let launch = launch::fold(&self.plan.band, round.miners, round.step, round.apply, at);
        self.lane.launch(&self.lane.gpu.kernels.fold, &launch, self.lane.threads.fold)
    }

    fn queue_hash(&mut self, number: usize) -> Result<(), CudaError> {
        let Plan { head, hashed, pieces, digests, .. } = self.plan;
        let threads = self.lane.threads.hash;
        let digests = self.start + digests + number as u64 * pieces * DIGEST_BYTES;
        let bytes = self.start + head;
        let launch = launch::hash_pieces(bytes, hashed, PIECE_BYTES, digests, threads);
        self.lane.launch(&self.lane.gpu.kernels.hash_pieces, &launch, threads)
    }

    /// The bytes of pieces that other bands have the rest of, as this round left them.
    fn fetch_ends(&self, out: &mut Fetched) -> Result<(), CudaError> {
        let bytes = |length: u64| vec![0u8; usize::try_from(length).expect("shorter than a piece")];
        out.ends.push((bytes(self.plan.head), bytes(self.plan.tail())));
        let (head, tail) = out.ends.last_mut().expect("it was pushed");
        if !head.is_empty() {
            self.lane.copy_out(0, head)?;
        }
        if !tail.is_empty() {
            self.lane.copy_out(self.plan.head + self.plan.hashed, tail)?;
        }
        Ok(())
    }

    fn fetch(&mut self, out: &mut Fetched) -> Result<(), CudaError> {
        let rounds = self.plan.rounds.len();
        let bytes = |each: u64| vec![0u8; rounds * usize::try_from(each).expect("it is in memory")];
        out.found = bytes(24);
        out.digests = bytes(self.plan.pieces * DIGEST_BYTES);
        self.lane.copy_out(self.plan.found, &mut out.found)?;
        self.lane.copy_out(self.plan.digests, &mut out.digests)?;
        if self.plan.whole() {
            out.roots = bytes(DIGEST_BYTES);
            self.roots()?;
            self.lane.copy_out(self.plan.roots, &mut out.roots)?;
        }
        Ok(())
    }

    fn fetch_state(&self, state: &mut [f32]) -> Result<(), CudaError> {
        self.lane.copy_out(0, f32_bytes::of_f32_mut(state))
    }

    /// Names the fault of the first round that has one.
    fn fault(&self, rounds: &[Round<'_>], out: &Fetched) -> Result<(), CudaError> {
        for (number, [_, _, block]) in out.found().enumerate() {
            if block != NONE {
                check::indices(&self.plan.band, &rounds[number].contributions)
                    .map_err(|source| CudaError::Kernel { round: number, source })?;
                let ordinal = self.lane.gpu.description.ordinal;
                return Err(CudaError::Mistaken { ordinal, block });
            }
        }
        Ok(())
    }

    fn made(&self, out: Fetched) -> Vec<Made> {
        let some = |element: u64| (element != NONE).then_some(element);
        let digests = out.digests.as_chunks::<32>().0;
        let roots = out.roots.as_chunks::<32>().0;
        let pieces = self.plan.pieces as usize;
        let found: Vec<_> = out.found().collect();
        let made = |(number, (head, tail)): (usize, (Vec<u8>, Vec<u8>))| Made {
            findings: Findings {
                delta_non_finite: some(found[number][0]),
                next_non_finite: some(found[number][1]),
            },
            head,
            digests: digests[number * pieces..][..pieces].to_vec(),
            tail,
            root: self.plan.whole().then(|| match pieces {
                0 => sha256(&[]),
                _ => roots[number],
            }),
        };
        out.ends.into_iter().enumerate().map(made).collect()
    }
}

impl Drop for Held<'_, '_> {
    fn drop(&mut self) {
        // What is borrowed and what is kept here may still be copied from.
        let _ = self.wait();
    }
}

impl Fetched {
    /// Per round: the lowest element whose delta and whose value is not finite, the lowest block with a
    /// fault.
    fn found(&self) -> impl Iterator<Item = [u64; 3]> {
        let word = |bytes: &[u8; 24], at| {
            u64::from_le_bytes(*bytes.as_chunks::<8>().0.get(at).expect("three words"))
        };
        let rounds = self.found.as_chunks::<24>().0.iter();
        rounds.map(move |bytes| [word(bytes, 0), word(bytes, 1), word(bytes, 2)])
    }
}
