/// Memory that O_DIRECT takes.
pub struct Aligned {
    memory: Vec<u8>,
    len: usize,
}

impl Aligned {
    pub fn new(len: usize) -> Aligned {
        Aligned { memory: vec![0; len + 4096], len }
    }

    pub fn holding(bytes: &[u8]) -> Aligned {
        let mut this = Aligned::new(bytes.len());
        this.bytes().copy_from_slice(bytes);
        this
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        let skip = self.memory.as_ptr().align_offset(4096);
        &mut self.memory[skip..skip + self.len]
    }
}
