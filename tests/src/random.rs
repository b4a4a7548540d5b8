/// Reproducible choices from a seed.
#[derive(Clone, Debug)]
pub struct Random(fastrand::Rng);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(fastrand::Rng::with_seed(seed))
    }

    pub fn number(&mut self) -> u64 {
        self.0.u64(..)
    }

    /// 0 to `limit`, without `limit`; 0 when that is none.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0.u64(..limit.max(1))
    }

    /// One of them; there has to be one.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.0.usize(..choices.len())]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.fill(&mut bytes);
        bytes
    }
}

/// What the test's random choices start from: AFTERWRITE_SEED or the clock. Printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    let clock =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |age| age.as_micros());
    let seed = crate::number_from_env("AFTERWRITE_SEED", u64::try_from(clock).unwrap_or(1));
    println!("AFTERWRITE_SEED={seed}");
    seed
}
