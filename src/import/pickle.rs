//! A restricted pickle reader: values come out, nothing is ever executed.
//!
//! `torch`, `dcp` and `templar` hand in the bytes of a pickle and a list of globals. A global is only
//! ever a name here; one that is not on the list is refused by its name. Calls are kept as what was
//! to be called and with what, for the caller to interpret.
//!
//! Values live in flat tables and refer to each other by index: a value that stands in the memo and is
//! used a million times is stored once, nesting has no depth, and dropping needs no recursion. A table
//! may refer to itself, so callers follow fixed paths and never walk a whole pickle.
//!
//! Trust: none. Every push and every memo entry is counted against [`Limits::steps`], so memory is at
//! most about 64 bytes a step plus the pickle itself, and time is linear in both.

use std::ops::Range;

/// Module and name of a global.
pub type Global = (&'static str, &'static str);

/// How much of a pickle is read.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest pickle in bytes.
    pub bytes: u64,
    /// Most pushes onto the stack, marks and memo entries together.
    pub steps: u64,
}

impl Limits {
    /// For `data.pkl` of an archive: 64 MiB, 8 Mi steps. An aggregator of 20 miners for a model of 720
    /// tensors takes 2 Mi.
    pub const ARCHIVE: Self = Self { bytes: 64 << 20, steps: 8 << 20 };

    /// For a checkpoint's `.metadata`: 256 MiB, 32 Mi steps. 720 tensors and their optimizer state on
    /// 64 ranks take about 8 Mi.
    pub const METADATA: Self = Self { bytes: 256 << 20, steps: 32 << 20 };
}

/// Longest module or name of a global in bytes.
pub const GLOBAL_BYTES_MAX: usize = 256;

/// Most pairs of a dict that [`Pickle::field`] looks through.
pub const FIELDS_MAX: usize = 64;

const _: () = assert!(Limits::METADATA.bytes <= u32::MAX as u64, "spans are 32-bit");
const _: () = assert!(Limits::METADATA.steps <= u32::MAX as u64, "indices are 32-bit");
const _: () = assert!(size_of::<Value>() == 16);

/// Why a pickle is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // Fields are named by their messages.
pub enum PickleError {
    #[error("the pickle has {bytes} bytes; at most {max} are read")]
    Bytes { bytes: u64, max: u64 },
    #[error("the pickle takes more than {max} steps, at byte {at}")]
    Steps { at: u64, max: u64 },
    #[error("the pickle ends at byte {at}, within a value")]
    Ended { at: u64 },
    #[error("{left} bytes follow the end of the pickle at byte {at}")]
    Trailing { at: u64, left: u64 },
    #[error("the pickle is of protocol {found:?}; 2 to 5 are read")]
    Protocol { found: Option<u8> },
    #[error("the pickle names the global {module:?} {name:?}, which is not among the few taken")]
    Global { module: String, name: String },
    #[error("opcode {code:#04x} at byte {at} is not one that is read")]
    Opcode { code: u8, at: u64 },
    #[error("at byte {at}: {expected} expected, {found} found")]
    Kind { at: u64, expected: &'static str, found: &'static str },
    #[error("at byte {at}: a length of {len} is taken up to {max}")]
    Length { at: u64, len: u64, max: u64 },
    #[error("the text at byte {at} is not UTF-8")]
    Text { at: u64 },
    #[error("at byte {at}: memo entry {index} of {known}")]
    Memo { at: u64, index: u64, known: u64 },
    #[error("at byte {at}: the stack holds too little")]
    Stack { at: u64 },
    #[error("at byte {at}: an object gets its state twice")]
    StateTwice { at: u64 },
}

/// A value: itself where it is small, otherwise a place in the pickle's tables.
#[derive(Debug, Clone, Copy)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of 64 bits.
    Int(i64),
    /// A longer integer, which no caller needs the value of.
    Long,
    /// A float.
    Float(f64),
    /// Text, see [`Pickle::text`].
    Text(Span),
    /// Bytes, see [`Pickle::bytes`].
    Bytes(Span),
    /// A tuple, see [`Pickle::items`].
    Tuple(Span),
    /// A list, see [`Pickle::items`].
    List(Place),
    /// A dict, see [`Pickle::pairs`].
    Dict(Place),
    /// A name on the caller's list, see [`Pickle::global`].
    Global(Place),
    /// A persistent id, see [`Pickle::persistent`].
    Persistent(Place),
    /// What a call would have made, see [`Pickle::object`].
    Object(Place),
}

/// A run of bytes or of tuple items.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn range(self) -> Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// A row of one of a pickle's tables.
#[derive(Debug, Clone, Copy)]
pub struct Place(u32);

/// A call that was not made.
#[derive(Debug, Clone, Copy)]
pub struct Object {
    /// What was to be called.
    pub global: Global,
    /// Its arguments, a tuple.
    pub args: Value,
    /// What was to be set on the result.
    pub state: Option<Value>,
}

struct StoredObject {
    global: u32,
    args: Value,
    state: Option<Value>,
    /// For the few objects that take items: which dict of the table holds them.
    items: Option<u32>,
}

/// The values of one pickle.
pub struct Pickle {
    bytes: Vec<u8>,
    globals: &'static [Global],
    tuples: Vec<Value>,
    lists: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    persistent: Vec<Value>,
    objects: Vec<StoredObject>,
    root: Value,
}

impl Pickle {
    /// Reads a pickle that may name only `globals`.
    ///
    /// # Errors
    ///
    /// [`PickleError`] names the first thing that is refused.
    pub fn read(
        bytes: Vec<u8>,
        globals: &'static [Global],
        limits: Limits,
    ) -> Result<Self, PickleError> {
        let len = bytes.len() as u64;
        if len > limits.bytes {
            return Err(PickleError::Bytes { bytes: len, max: limits.bytes });
        }
        Machine::new(bytes, globals, limits.steps).run()
    }

    /// The value that the pickle is of.
    pub fn root(&self) -> Value {
        self.root
    }

    /// The text, if it is one.
    pub fn text(&self, value: Value) -> Option<&str> {
        let Value::Text(span) = value else { return None };
        std::str::from_utf8(&self.bytes[span.range()]).ok()
    }

    /// The bytes, if it is such.
    pub fn bytes(&self, value: Value) -> Option<&[u8]> {
        let Value::Bytes(span) = value else { return None };
        Some(&self.bytes[span.range()])
    }

    /// The integer, if it is one of 64 bits.
    pub fn int(&self, value: Value) -> Option<i64> {
        let Value::Int(int) = value else { return None };
        Some(int)
    }

    /// The integer, if it is one that is not negative.
    pub fn count(&self, value: Value) -> Option<u64> {
        self.int(value).and_then(|int| u64::try_from(int).ok())
    }

    /// The items of a tuple or a list.
    pub fn items(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Tuple(span) => Some(&self.tuples[span.range()]),
            Value::List(place) => Some(&self.lists[place.0 as usize]),
            _ => None,
        }
    }

    /// The items of a tuple.
    pub fn tuple(&self, value: Value) -> Option<&[Value]> {
        self.items(value).filter(|_| matches!(value, Value::Tuple(_)))
    }

    /// The pairs of a dict, or of an object that got items as an `OrderedDict` does, as they were set: a key
    /// may stand twice.
    pub fn pairs(&self, value: Value) -> Option<&[(Value, Value)]> {
        match value {
            Value::Dict(place) => Some(&self.dicts[place.0 as usize]),
            Value::Object(place) => {
                let items = self.objects[place.0 as usize].items;
                Some(items.map_or(&[], |dict| self.dicts[dict as usize].as_slice()))
            }
            _ => None,
        }
    }

    /// The value of the key `name` in a dict of at most [`FIELDS_MAX`] pairs; the last, as in Python.
    pub fn field(&self, dict: Value, name: &str) -> Option<Value> {
        let pairs = self.pairs(dict).filter(|pairs| pairs.len() <= FIELDS_MAX)?;
        pairs.iter().rev().find(|(key, _)| self.text(*key) == Some(name)).map(|(_, value)| *value)
    }

    /// The global, if it is one.
    pub fn global(&self, value: Value) -> Option<Global> {
        let Value::Global(place) = value else { return None };
        Some(self.globals[place.0 as usize])
    }

    /// The id that a persistent load was to look up.
    pub fn persistent(&self, value: Value) -> Option<Value> {
        let Value::Persistent(place) = value else { return None };
        Some(self.persistent[place.0 as usize])
    }

    /// The call that was to make this value.
    pub fn object(&self, value: Value) -> Option<Object> {
        let Value::Object(place) = value else { return None };
        let object = &self.objects[place.0 as usize];
        let global = self.globals[object.global as usize];
        Some(Object { global, args: object.args, state: object.state })
    }
}

impl Value {
    /// What kind of value it is, for errors.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) | Self::Long => "an integer",
            Self::Float(_) => "a float",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a global",
            Self::Persistent(_) => "a persistent id",
            Self::Object(_) => "an object",
        }
    }
}

/// The opcodes that are read, as `pickletools` names them.
mod op {
    pub const MARK: u8 = b'(';
    pub const STOP: u8 = b'.';
    pub const POP: u8 = b'0';
    pub const POP_MARK: u8 = b'1';
    pub const DUP: u8 = b'2';
    pub const BINFLOAT: u8 = b'G';
    pub const BININT: u8 = b'J';
    pub const BININT1: u8 = b'K';
    pub const BININT2: u8 = b'M';
    pub const NONE: u8 = b'N';
    pub const BINPERSID: u8 = b'Q';
    pub const REDUCE: u8 = b'R';
    pub const BINUNICODE: u8 = b'X';
    pub const APPEND: u8 = b'a';
    pub const BUILD: u8 = b'b';
    pub const GLOBAL: u8 = b'c';
    pub const APPENDS: u8 = b'e';
    pub const BINGET: u8 = b'h';
    pub const LONG_BINGET: u8 = b'j';
    pub const LIST: u8 = b'l';
    pub const DICT: u8 = b'd';
    pub const EMPTY_LIST: u8 = b']';
    pub const EMPTY_DICT: u8 = b'}';
    pub const EMPTY_TUPLE: u8 = b')';
    pub const BINPUT: u8 = b'q';
    pub const LONG_BINPUT: u8 = b'r';
    pub const SETITEM: u8 = b's';
    pub const TUPLE: u8 = b't';
    pub const SETITEMS: u8 = b'u';
    pub const BINBYTES: u8 = b'B';
    pub const SHORT_BINBYTES: u8 = b'C';
    pub const PROTO: u8 = 0x80;
    pub const NEWOBJ: u8 = 0x81;
    pub const TUPLE1: u8 = 0x85;
    pub const TUPLE2: u8 = 0x86;
    pub const TUPLE3: u8 = 0x87;
    pub const NEWTRUE: u8 = 0x88;
    pub const NEWFALSE: u8 = 0x89;
    pub const LONG1: u8 = 0x8a;
    pub const SHORT_BINUNICODE: u8 = 0x8c;
    pub const BINUNICODE8: u8 = 0x8d;
    pub const BINBYTES8: u8 = 0x8e;
    pub const STACK_GLOBAL: u8 = 0x93;
    pub const MEMOIZE: u8 = 0x94;
    pub const FRAME: u8 = 0x95;
}

/// The stack machine that a pickle is a program for, less everything that acts.
struct Machine {
    made: Pickle,
    at: usize,
    /// Where the opcode being read starts.
    op_at: u64,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: Vec<Value>,
    steps_left: u64,
    steps_max: u64,
}

type Step<T> = Result<T, PickleError>;

impl Machine {
    fn new(bytes: Vec<u8>, globals: &'static [Global], steps: u64) -> Self {
        let made = Pickle {
            bytes,
            globals,
            tuples: Vec::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            persistent: Vec::new(),
            objects: Vec::new(),
            root: Value::None,
        };
        let (stack, marks, memo) = (Vec::new(), Vec::new(), Vec::new());
        Self { made, at: 0, op_at: 0, stack, marks, memo, steps_left: steps, steps_max: steps }
    }

    fn run(mut self) -> Step<Pickle> {
        match self.made.bytes.as_slice() {
            [op::PROTO, 2..=5, ..] => self.at = 2,
            [op::PROTO, found, ..] => return Err(PickleError::Protocol { found: Some(*found) }),
            _ => return Err(PickleError::Protocol { found: None }),
        }
        loop {
            self.op_at = self.at as u64;
            match self.u8()? {
                op::STOP => break,
                code => self.step(code)?,
            }
        }
        self.made.root = self.pop()?;
        let left = (self.made.bytes.len() - self.at) as u64;
        if left > 0 {
            return Err(PickleError::Trailing { at: self.at as u64, left });
        }
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return Err(self.kind("one value at the end", "several"));
        }
        Ok(self.made)
    }

    fn step(&mut self, code: u8) -> Step<()> {
        match code {
            op::MARK => {
                self.spend()?;
                self.marks.push(self.stack.len());
                Ok(())
            }
            op::POP if self.marks.last() == Some(&self.stack.len()) => {
                self.marks.pop();
                Ok(())
            }
            op::POP => self.pop().map(drop),
            op::POP_MARK => self.pop_mark().map(|start| self.stack.truncate(start)),
            op::DUP => self.top().and_then(|value| self.push(value)),
            op::NONE => self.push(Value::None),
            op::NEWTRUE => self.push(Value::Bool(true)),
            op::NEWFALSE => self.push(Value::Bool(false)),
            op::BININT | op::BININT1 | op::BININT2 | op::LONG1 | op::BINFLOAT => self.number(code),
            op::BINUNICODE | op::SHORT_BINUNICODE | op::BINUNICODE8 => self.unicode(code),
            op::BINBYTES | op::SHORT_BINBYTES | op::BINBYTES8 => {
                let span = self.run_of_bytes(code)?;
                self.push(Value::Bytes(span))
            }
            op::EMPTY_TUPLE => self.tuple(self.stack.len()),
            op::TUPLE1 => self.tuple_of(1),
            op::TUPLE2 => self.tuple_of(2),
            op::TUPLE3 => self.tuple_of(3),
            op::TUPLE => self.pop_mark().and_then(|start| self.tuple(start)),
            op::EMPTY_LIST => self.list(Vec::new()),
            op::LIST => {
                let start = self.pop_mark()?;
                let items = self.stack.split_off(start);
                self.list(items)
            }
            op::APPEND => self.floor(1).and_then(|start| self.append(start)),
            op::APPENDS => self.pop_mark().and_then(|start| self.append(start)),
            op::EMPTY_DICT => self.dict(Vec::new()),
            op::DICT => {
                let start = self.pop_mark()?;
                let pairs = self.take_pairs(start)?;
                self.dict(pairs)
            }
            op::SETITEM => self.floor(2).and_then(|start| self.set_items(start)),
            op::SETITEMS => self.pop_mark().and_then(|start| self.set_items(start)),
            op::GLOBAL => self.global_by_lines(),
            op::STACK_GLOBAL => self.global_by_stack(),
            // For us a call and a construction are the same: neither happens.
            op::REDUCE | op::NEWOBJ => self.call(),
            op::BUILD => self.build(),
            op::BINPERSID => {
                let id = self.pop()?;
                let place = Place(self.made.persistent.len() as u32);
                self.made.persistent.push(id);
                self.push(Value::Persistent(place))
            }
            op::BINPUT => self.u8().and_then(|index| self.put(index.into())),
            op::LONG_BINPUT => self.uint(4).and_then(|index| self.put(index)),
            op::MEMOIZE => self.put(self.memo.len() as u64),
            op::BINGET => self.u8().and_then(|index| self.get(index.into())),
            op::LONG_BINGET => self.uint(4).and_then(|index| self.get(index)),
            // A frame only tells a reader how much to buffer.
            op::FRAME => self.uint(8).map(drop),
            code => Err(PickleError::Opcode { code, at: self.op_at }),
        }
    }

    fn number(&mut self, code: u8) -> Step<()> {
        let value = match code {
            op::BININT => Value::Int(i64::from(self.uint(4)? as u32 as i32)),
            op::BININT1 => Value::Int(i64::from(self.u8()?)),
            op::BININT2 => Value::Int(self.uint(2)? as i64),
            op::BINFLOAT => Value::Float(f64::from_bits(self.uint(8)?.swap_bytes())),
            _ => self.long()?,
        };
        self.push(value)
    }

    /// LONG1: up to 255 bytes, two's complement, least significant first.
    fn long(&mut self) -> Step<Value> {
        let len = usize::from(self.u8()?);
        let range = self.take(len as u64)?;
        if len > 8 {
            return Ok(Value::Long);
        }
        let digits = &self.made.bytes[range];
        let sign = if digits.last().is_some_and(|top| top & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [sign; 8];
        wide[..len].copy_from_slice(digits);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn unicode(&mut self, code: u8) -> Step<()> {
        let span = self.run_of_bytes(code)?;
        match std::str::from_utf8(&self.made.bytes[span.range()]) {
            Ok(_) => self.push(Value::Text(span)),
            Err(_) => Err(PickleError::Text { at: self.op_at }),
        }
    }

    fn run_of_bytes(&mut self, code: u8) -> Step<Span> {
        let len = match code {
            op::SHORT_BINUNICODE | op::SHORT_BINBYTES => self.uint(1)?,
            op::BINUNICODE | op::BINBYTES => self.uint(4)?,
            _ => self.uint(8)?,
        };
        let range = self.take(len)?;
        // Both fit: a pickle is shorter than 2^32 bytes.
        Ok(Span { start: range.start as u32, len: range.len() as u32 })
    }

    fn tuple_of(&mut self, len: usize) -> Step<()> {
        self.floor_above_marks(len).and_then(|start| self.tuple(start))
    }

    /// Makes a tuple of what lies on the stack from `start` on.
    fn tuple(&mut self, start: usize) -> Step<()> {
        let span =
            Span { start: self.made.tuples.len() as u32, len: (self.stack.len() - start) as u32 };
        self.made.tuples.extend(self.stack.drain(start..));
        self.push(Value::Tuple(span))
    }

    fn list(&mut self, items: Vec<Value>) -> Step<()> {
        let place = Place(self.made.lists.len() as u32);
        self.made.lists.push(items);
        self.push(Value::List(place))
    }

    fn dict(&mut self, pairs: Vec<(Value, Value)>) -> Step<()> {
        let place = Place(self.made.dicts.len() as u32);
        self.made.dicts.push(pairs);
        self.push(Value::Dict(place))
    }

    fn append(&mut self, start: usize) -> Step<()> {
        match self.below(start)? {
            Value::List(place) => {
                self.made.lists[place.0 as usize].extend(self.stack.drain(start..));
                Ok(())
            }
            other => Err(self.kind("a list to append to", other.kind())),
        }
    }

    fn set_items(&mut self, start: usize) -> Step<()> {
        let target = self.below(start)?;
        let pairs = self.take_pairs(start)?;
        let dict = match target {
            Value::Dict(place) => place.0,
            Value::Object(place) => {
                let next = self.made.dicts.len() as u32;
                let dict = *self.made.objects[place.0 as usize].items.get_or_insert(next);
                if dict == next {
                    self.made.dicts.push(Vec::new());
                }
                dict
            }
            other => return Err(self.kind("a dict to set items of", other.kind())),
        };
        self.made.dicts[dict as usize].extend(pairs);
        Ok(())
    }

    fn take_pairs(&mut self, start: usize) -> Step<Vec<(Value, Value)>> {
        let flat = &self.stack[start..];
        if !flat.len().is_multiple_of(2) {
            return Err(self.kind("a value to each key", "a key alone"));
        }
        let pairs = flat.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        self.stack.truncate(start);
        Ok(pairs)
    }

    fn global_by_lines(&mut self) -> Step<()> {
        let module = self.line()?;
        let name = self.line()?;
        let index = self.look_up(module, name)?;
        self.push(Value::Global(Place(index)))
    }

    fn global_by_stack(&mut self) -> Step<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        match (module, name) {
            (Value::Text(module), Value::Text(name)) => {
                let index = self.look_up(module.range(), name.range())?;
                self.push(Value::Global(Place(index)))
            }
            (_, other) => Err(self.kind("the name of a global", other.kind())),
        }
    }

    fn look_up(&self, module: Range<usize>, name: Range<usize>) -> Step<u32> {
        let (module, name) = (&self.made.bytes[module], &self.made.bytes[name]);
        let is = |global: &Global| global.0.as_bytes() == module && global.1.as_bytes() == name;
        self.made.globals.iter().position(is).map(|index| index as u32).ok_or_else(|| {
            let text = |bytes: &[u8]| {
                String::from_utf8_lossy(&bytes[..bytes.len().min(GLOBAL_BYTES_MAX)]).into_owned()
            };
            PickleError::Global { module: text(module), name: text(name) }
        })
    }

    /// A line of a GLOBAL opcode, without its end.
    fn line(&mut self) -> Step<Range<usize>> {
        let rest = &self.made.bytes[self.at..];
        let longest = &rest[..rest.len().min(GLOBAL_BYTES_MAX + 1)];
        let Some(len) = longest.iter().position(|&byte| byte == b'\n') else {
            let (at, max) = (self.op_at, GLOBAL_BYTES_MAX as u64);
            return Err(match longest.len() > GLOBAL_BYTES_MAX {
                true => PickleError::Length { at, len: max + 1, max },
                false => PickleError::Ended { at: self.made.bytes.len() as u64 },
            });
        };
        let range = self.at..self.at + len;
        self.at += len + 1;
        Ok(range)
    }

    fn call(&mut self) -> Step<()> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let Value::Global(Place(global)) = callee else {
            return Err(self.kind("a global to call", callee.kind()));
        };
        let Value::Tuple(_) = args else {
            return Err(self.kind("a tuple of arguments", args.kind()));
        };
        let place = Place(self.made.objects.len() as u32);
        self.made.objects.push(StoredObject { global, args, state: None, items: None });
        self.push(Value::Object(place))
    }

    fn build(&mut self) -> Step<()> {
        let (state, target) = (self.pop()?, self.top()?);
        let Value::Object(place) = target else {
            return Err(self.kind("an object to set a state of", target.kind()));
        };
        match self.made.objects[place.0 as usize].state.replace(state) {
            None => Ok(()),
            Some(_) => Err(PickleError::StateTwice { at: self.op_at }),
        }
    }

    /// Writers number their memo from 0 without gaps, so it is a list.
    fn put(&mut self, index: u64) -> Step<()> {
        self.spend()?;
        let value = self.top()?;
        let known = self.memo.len() as u64;
        match self.memo.get_mut(index as usize) {
            Some(slot) => *slot = value,
            None if index == known => self.memo.push(value),
            None => return Err(PickleError::Memo { at: self.op_at, index, known }),
        }
        Ok(())
    }

    fn get(&mut self, index: u64) -> Step<()> {
        let known = self.memo.len() as u64;
        match self.memo.get(index as usize) {
            Some(&value) => self.push(value),
            None => Err(PickleError::Memo { at: self.op_at, index, known }),
        }
    }

    fn spend(&mut self) -> Step<()> {
        match self.steps_left.checked_sub(1) {
            Some(left) => self.steps_left = left,
            None => return Err(PickleError::Steps { at: self.op_at, max: self.steps_max }),
        }
        Ok(())
    }

    fn push(&mut self, value: Value) -> Step<()> {
        self.spend()?;
        self.stack.push(value);
        Ok(())
    }

    /// The place of the last `len` values, which must lie above the last mark.
    fn floor_above_marks(&self, len: usize) -> Step<usize> {
        let mark = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(len).filter(|&start| start >= mark);
        start.ok_or(PickleError::Stack { at: self.op_at })
    }

    /// The same, with a value below that they are added to.
    fn floor(&self, len: usize) -> Step<usize> {
        self.floor_above_marks(len + 1).map(|start| start + 1)
    }

    fn below(&self, start: usize) -> Step<Value> {
        let mark = self.marks.last().copied().unwrap_or(0);
        let below = start.checked_sub(1).filter(|&below| below >= mark);
        below.map(|below| self.stack[below]).ok_or(PickleError::Stack { at: self.op_at })
    }

    fn top(&self) -> Step<Value> {
        self.floor_above_marks(1).map(|at| self.stack[at])
    }

    fn pop(&mut self) -> Step<Value> {
        let at = self.floor_above_marks(1)?;
        let value = self.stack[at];
        self.stack.truncate(at);
        Ok(value)
    }

    fn pop_mark(&mut self) -> Step<usize> {
        self.marks.pop().ok_or(PickleError::Stack { at: self.op_at })
    }

    fn take(&mut self, len: u64) -> Step<Range<usize>> {
        let left = (self.made.bytes.len() - self.at) as u64;
        if len > left {
            return Err(PickleError::Ended { at: self.made.bytes.len() as u64 });
        }
        let range = self.at..self.at + len as usize;
        self.at = range.end;
        Ok(range)
    }

    fn u8(&mut self) -> Step<u8> {
        self.uint(1).map(|byte| byte as u8)
    }

    /// The next `len` bytes, at most 8, as a little-endian number.
    fn uint(&mut self, len: u64) -> Step<u64> {
        let range = self.take(len)?;
        Ok(self.made.bytes[range]
            .iter()
            .rev()
            .fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn kind(&self, expected: &'static str, found: &'static str) -> PickleError {
        PickleError::Kind { at: self.op_at, expected, found }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBALS: &[Global] = &[("collections", "OrderedDict")];
    const LIMITS: Limits = Limits { bytes: 1 << 20, steps: 1000 };

    fn read(body: &[u8]) -> Result<Pickle, PickleError> {
        Pickle::read([b"\x80\x02", body].concat(), GLOBALS, LIMITS)
    }

    #[test]
    fn numbers_are_what_python_wrote() {
        let int = |body: &[u8]| read(body).unwrap().root();
        assert!(matches!(int(b"K\xff."), Value::Int(255)));
        assert!(matches!(int(b"M\xff\xff."), Value::Int(65535)));
        assert!(matches!(int(b"J\xff\xff\xff\xff."), Value::Int(-1)));
        assert!(matches!(int(b"\x8a\x00."), Value::Int(0)));
        assert!(matches!(int(b"\x8a\x01\x80."), Value::Int(-128)));
        assert!(matches!(int(b"\x8a\x05\x00\x00\x00\x00\x01."), Value::Int(0x1_0000_0000)));
        assert!(matches!(int(b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01."), Value::Long));
        let Value::Float(half) = int(b"G\x3f\xe0\0\0\0\0\0\0.") else { panic!("not a float") };
        assert_eq!(half.to_bits(), 0.5_f64.to_bits());
    }

    #[test]
    fn a_global_off_the_list_is_refused_by_name() {
        let refused = PickleError::Global { module: "os".to_owned(), name: "system".to_owned() };
        assert_eq!(read(b"cos\nsystem\n.").err(), Some(refused.clone()));
        assert_eq!(read(b"\x8c\x02os\x8c\x06system\x93.").err(), Some(refused));
        assert!(read(b"ccollections\nOrderedDict\n)R.").is_ok());
    }

    #[test]
    fn what_is_shared_is_stored_once_and_may_contain_itself() {
        // l = []; l.append(l)
        let pickle = read(b"]q\x00h\x00a.").unwrap();
        let items = pickle.items(pickle.root()).unwrap();
        assert!(matches!(items, [Value::List(_)]));
        // Each level is twice the one before: 2^60 leaves in a few hundred bytes.
        let mut bomb = b"]q\x00".to_vec();
        for level in 0..60_u8 {
            bomb.extend([b'h', level, b'h', level, 0x86, b'q', level + 1]);
            bomb.push(b'0');
        }
        bomb.extend(b".");
        assert!(read(&bomb).is_ok());
    }

    #[test]
    fn steps_are_counted_and_the_stack_never_underflows() {
        assert!(matches!(read(&b"N".repeat(1001)), Err(PickleError::Steps { max: 1000, .. })));
        assert!(matches!(read(b"q\x00."), Err(PickleError::Stack { .. })));
        for body in [&b"."[..], b"0.", b"\x85.", b"N(a.", b"(Na.", b"Ra.", b"b.", b"(N\x85"] {
            assert!(read(body).is_err(), "{body:?}");
        }
        // What lies below a mark is out of reach.
        assert!(matches!(read(b"N(\x85."), Err(PickleError::Stack { .. })));
        assert!(matches!(read(b"]Nq\x05."), Err(PickleError::Memo { index: 5, known: 0, .. })));
    }

    #[test]
    fn objects_keep_call_state_and_items() {
        let pickle = read(b"ccollections\nOrderedDict\n)R}K\x01K\x02sb(K\x03K\x04u.").unwrap();
        let object = pickle.object(pickle.root()).unwrap();
        assert_eq!(object.global, ("collections", "OrderedDict"));
        assert_eq!(pickle.pairs(object.state.unwrap()).unwrap().len(), 1);
        assert!(matches!(pickle.pairs(pickle.root()), Some([(Value::Int(3), Value::Int(4))])));
        assert!(read(b"ccollections\nOrderedDict\n)R}b}b.").is_err());
    }
}
