//! Gradient files written by hand, with every part in reach: what a miner could send, good or bad.

use super::model::{Delta, Model, Sent};

/// A tensor in an archive.
#[derive(Clone)]
pub struct Stored {
    /// Name of torch's storage type, such as `Byte`.
    pub storage: &'static str,
    pub element_bytes: usize,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
    /// Other strides than the row-major ones.
    pub strides: Option<Vec<u64>>,
}

impl Stored {
    pub fn bytes(shape: &[u64], bytes: Vec<u8>) -> Self {
        let shape = shape.to_vec();
        Self { storage: "Byte", element_bytes: 1, shape, bytes, strides: None }
    }

    pub fn floats(shape: &[u64], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = shape.to_vec();
        Self { storage: "Float", element_bytes: 4, shape, bytes, strides: None }
    }
}

/// The scale of a quantiser: Templar writes a float.
#[derive(Clone, Copy)]
pub enum Scale {
    Float(f64),
    Int(u8),
}

/// A value of the state dict.
#[derive(Clone)]
pub enum Value {
    Tensor(Stored),
    Quant { shift: Stored, scale: Scale, lookup: Stored },
}

/// A file to be: change what you like, then [`Gradient::write`] it.
#[derive(Clone)]
pub struct Gradient {
    pub keys: Vec<(String, Value)>,
    /// `metadata`'s window; none leaves the metadata out.
    pub window: Option<u32>,
    /// Stands in place of the pickle.
    pub pickle: Option<Vec<u8>>,
    /// Entries of which a byte is not the one that the CRC was made of: how their names end.
    pub flipped: Vec<String>,
    /// Entries that no tensor is in.
    pub more: Vec<(String, Vec<u8>)>,
}

impl Gradient {
    /// The file that an honest miner would write.
    pub fn of(model: &Model, round: u64, delta: &Delta) -> Self {
        let mut keys = Vec::new();
        for (name, sent) in delta {
            keys.push((format!("{name}idxs"), Value::Tensor(idxs(sent))));
            keys.push((format!("{name}vals"), Value::Tensor(vals(model, name, sent))));
            let (shift, lookup) = (&[sent.shift], &sent.lookup);
            let shift = Stored::floats(&[], shift);
            let lookup = Stored::floats(&[lookup.len() as u64], lookup);
            let quant = Value::Quant { shift, scale: Scale::Float(0.125), lookup };
            keys.push((format!("{name}quant_params"), quant));
        }
        let window = Some(round as u32);
        Self { keys, window, pickle: None, flipped: vec![], more: vec![] }
    }

    pub fn position(&self, key: &str) -> Option<usize> {
        self.keys.iter().position(|(name, _)| name == key)
    }

    pub fn remove(&mut self, key: &str) {
        self.keys.retain(|(name, _)| name != key);
    }

    /// The tensor at a key, if it is still there.
    pub fn tensor(&mut self, key: &str) -> Option<&mut Stored> {
        let at = self.position(key)?;
        match &mut self.keys[at].1 {
            Value::Tensor(stored) => Some(stored),
            Value::Quant { .. } => None,
        }
    }

    /// Shift, scale and lookup of a tensor, if they are still there.
    pub fn quant(&mut self, name: &str) -> Option<(&mut Stored, &mut Scale, &mut Stored)> {
        let at = self.position(&format!("{name}quant_params"))?;
        match &mut self.keys[at].1 {
            Value::Tensor(_) => None,
            Value::Quant { shift, scale, lookup } => Some((shift, scale, lookup)),
        }
    }

    /// The entry that a key's (first) tensor will lie in.
    pub fn entry_of(&self, key: &str) -> String {
        let before = self.position(key).unwrap();
        let storages = |(_, value): &(String, Value)| match value {
            Value::Tensor(_) => 1,
            Value::Quant { .. } => 2,
        };
        format!("/data/{}", self.keys[..before].iter().map(storages).sum::<usize>())
    }

    /// The file's bytes.
    pub fn write(&self) -> Vec<u8> {
        let (mut pickle, mut entries) = (b"\x80\x02}(".to_vec(), Vec::new());
        text(&mut pickle, "state_dict");
        pickle.extend(b"}(");
        for (key, value) in &self.keys {
            text(&mut pickle, key);
            match value {
                Value::Tensor(stored) => tensor(&mut pickle, &mut entries, stored),
                Value::Quant { shift, scale, lookup } => {
                    pickle.push(b'(');
                    tensor(&mut pickle, &mut entries, shift);
                    match scale {
                        Scale::Float(scale) => {
                            pickle.push(b'G');
                            pickle.extend(scale.to_be_bytes());
                        }
                        Scale::Int(scale) => pickle.extend([b'K', *scale]),
                    }
                    pickle.extend(b"K\x02");
                    tensor(&mut pickle, &mut entries, lookup);
                    pickle.extend(b"ctorch\nfloat32\nt");
                }
            }
        }
        if let Some(window) = self.window {
            text(&mut pickle, "metadata");
            pickle.extend(b"}(");
            text(&mut pickle, "window");
            int(&mut pickle, window.into());
            pickle.push(b'u');
        }
        pickle.push(b'u');
        text(&mut pickle, "global_step");
        pickle.extend(b"K\x07u.");
        entries.extend([
            ("byteorder".to_owned(), b"little".to_vec()),
            ("version".to_owned(), b"3\n".to_vec()),
            ("data.pkl".to_owned(), self.pickle.clone().unwrap_or(pickle)),
        ]);
        entries.extend(self.more.clone());
        zip(&entries, &self.flipped)
    }
}

/// Two 12-bit numbers in three bytes.
pub fn pack_index(index: &[u16]) -> Vec<u8> {
    let pair = |pair: &[u16]| {
        let (a, b) = (pair[0], pair[1]);
        [a as u8, (a >> 8 | (b & 15) << 4) as u8, (b >> 4) as u8]
    };
    index.chunks(2).flat_map(pair).collect()
}

/// Sets the 12-bit number at `place` of packed ones.
pub fn set_index(packed: &mut [u8], place: usize, index: u16) {
    let three = &mut packed[place / 2 * 3..][..3];
    if place.is_multiple_of(2) {
        three[0] = index as u8;
        three[1] = three[1] & 0xf0 | (index >> 8) as u8;
    } else {
        three[1] = three[1] & 0x0f | (index << 4) as u8;
        three[2] = (index >> 4) as u8;
    }
}

/// The 12-bit number at `place`.
pub fn index_at(packed: &[u8], place: usize) -> u16 {
    let three = &packed[place / 2 * 3..][..3];
    let [a, b, c] = [0, 1, 2].map(|i| u16::from(three[i]));
    if place.is_multiple_of(2) { a | (b & 15) << 8 } else { b >> 4 | c << 4 }
}

fn idxs(sent: &Sent) -> Stored {
    let packed = pack_index(&sent.index.concat());
    Stored::bytes(&[packed.len() as u64], packed)
}

fn vals(model: &Model, name: &str, sent: &Sent) -> Stored {
    let tensor = model.tensor(name);
    let (grid, k) = (tensor.grid(model.rule.chunk), sent.codes[0].len() as u64);
    let (down, across) = (grid.rows / grid.height, grid.columns / grid.width);
    let shape = if tensor.shape.len() == 1 { vec![across, k] } else { vec![down, across, k] };
    Stored::bytes(&shape, sent.codes.concat())
}

pub fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

fn int(pickle: &mut Vec<u8>, int: u64) {
    pickle.extend([0x8a, 8]);
    pickle.extend(int.to_le_bytes());
}

fn sizes(pickle: &mut Vec<u8>, sizes: &[u64]) {
    pickle.push(b'(');
    sizes.iter().for_each(|&size| int(pickle, size));
    pickle.push(b't');
}

fn tensor(pickle: &mut Vec<u8>, entries: &mut Vec<(String, Vec<u8>)>, stored: &Stored) {
    let key = entries.len().to_string();
    entries.push((format!("data/{key}"), stored.bytes.clone()));
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(pickle, "storage");
    pickle.extend(format!("ctorch\n{}Storage\n", stored.storage).as_bytes());
    text(pickle, &key);
    text(pickle, "cuda:0");
    int(pickle, (stored.bytes.len() / stored.element_bytes) as u64);
    pickle.extend(b"tQK\x00");
    sizes(pickle, &stored.shape);
    let mut strides = vec![1; stored.shape.len()];
    for d in (1..strides.len()).rev() {
        strides[d - 1] = strides[d] * stored.shape[d];
    }
    sizes(pickle, stored.strides.as_ref().unwrap_or(&strides));
    pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
}

/// Stored entries below one folder; the last byte of those in `flipped` is another than the CRC's.
fn zip(entries: &[(String, Vec<u8>)], flipped: &[String]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let name = format!("archive/{name}");
        let mut common = vec![0, 0, 0, 0, 0, 0, 0, 0];
        common.extend(crc32fast::hash(data).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        let header = file.len() as u32;
        file.extend(b"PK\x03\x04\x14\0");
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend(data);
        if flipped.iter().any(|end| name.ends_with(end.as_str())) {
            *file.last_mut().unwrap() ^= 1;
        }
        directory.extend(b"PK\x01\x02\x14\0\x14\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(header.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, count) = (file.len() as u32, entries.len() as u16);
    let bytes = directory.len() as u32;
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(count.to_le_bytes());
    file.extend(count.to_le_bytes());
    file.extend(bytes.to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}
