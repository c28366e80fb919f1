//! Zip archives written by hand, every field in reach.

/// One entry of a hand-made zip; what a field is `None` for is written truthfully.
#[derive(Clone, Default)]
pub struct Entry {
    pub name: String,
    pub data: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    pub crc: Option<u32>,
    pub stated_len: Option<u32>,
    pub local_name: Option<String>,
    pub local_crc: Option<u32>,
    /// Where the directory says that the header is, instead of where it is.
    pub header: Option<u32>,
}

pub fn entry(name: &str, data: &[u8]) -> Entry {
    Entry { name: name.to_owned(), data: data.to_vec(), ..Entry::default() }
}

pub fn local_header(entry: &Entry) -> Vec<u8> {
    let name = entry.local_name.as_ref().unwrap_or(&entry.name);
    let crc = entry.local_crc.or(entry.crc).unwrap_or_else(|| crc32fast::hash(&entry.data));
    let len = entry.stated_len.unwrap_or(entry.data.len() as u32);
    let mut bytes = b"PK\x03\x04\x14\0".to_vec();
    bytes.extend(entry.flags.to_le_bytes());
    bytes.extend(entry.method.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend((name.len() as u16).to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend(name.as_bytes());
    bytes
}

fn central_header(entry: &Entry, header: u32) -> Vec<u8> {
    let crc = entry.crc.unwrap_or_else(|| crc32fast::hash(&entry.data));
    let len = entry.stated_len.unwrap_or(entry.data.len() as u32);
    let mut bytes = b"PK\x01\x02\x14\0\x14\0".to_vec();
    bytes.extend(entry.flags.to_le_bytes());
    bytes.extend(entry.method.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend((entry.name.len() as u16).to_le_bytes());
    bytes.extend([0; 12]);
    bytes.extend(entry.header.unwrap_or(header).to_le_bytes());
    bytes.extend(entry.name.as_bytes());
    bytes
}

fn end_of_directory(entries: u16, bytes: u32, start: u32) -> Vec<u8> {
    let mut end = b"PK\x05\x06\0\0\0\0".to_vec();
    end.extend(entries.to_le_bytes());
    end.extend(entries.to_le_bytes());
    end.extend(bytes.to_le_bytes());
    end.extend(start.to_le_bytes());
    end.extend([0, 0]);
    end
}

pub fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        directory.extend(central_header(entry, bytes.len() as u32));
        // An entry that points elsewhere has no bytes of its own.
        if entry.header.is_none() {
            bytes.extend(local_header(entry));
            bytes.extend(&entry.data);
        }
    }
    let start = bytes.len() as u32;
    bytes.extend(&directory);
    bytes.extend(end_of_directory(entries.len() as u16, directory.len() as u32, start));
    bytes
}

/// An archive of torch.save with this pickle and these storages.
pub fn torch_zip(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut entries = vec![
        entry("a/data.pkl", pickle),
        entry("a/byteorder", b"little"),
        entry("a/version", b"3\n"),
    ];
    let storage = |(key, data): &(&str, &[u8])| entry(&format!("a/data/{key}"), data);
    entries.extend(storages.iter().map(storage));
    zip(&entries)
}
