//! The Parquet columns that segments are made of.

use std::sync::Arc;

use parquet::{
    basic::{ConvertedType, LogicalType, Repetition, Type as Physical},
    schema::types::{SchemaDescPtr, SchemaDescriptor, Type, TypePtr},
};

use crate::types::tensor::Dtype;

/// Columns are built from constants, so building them cannot fail.
const VALID: &str = "the column's description is valid";

/// A schema of these columns.
pub(super) fn of(columns: Vec<TypePtr>) -> SchemaDescPtr {
    let root = Type::group_type_builder("schema").with_fields(columns).build().expect(VALID);
    Arc::new(SchemaDescriptor::new(Arc::new(root)))
}

/// A required column of a plain type.
pub(super) fn plain(name: &str, physical: Physical) -> TypePtr {
    column(name, physical, Repetition::REQUIRED, None)
}

/// A required or optional column of a plain type.
pub(super) fn primitive(name: &str, physical: Physical, repetition: Repetition) -> TypePtr {
    column(name, physical, repetition, None)
}

/// A required column of `width` bytes a value.
pub(super) fn fixed(name: &str, width: usize) -> TypePtr {
    let width = i32::try_from(width).expect("a row has at most a few thousand bytes");
    let column = Type::primitive_type_builder(name, Physical::FIXED_LEN_BYTE_ARRAY)
        .with_repetition(Repetition::REQUIRED)
        .with_length(width);
    Arc::new(column.build().expect(VALID))
}

/// A required or optional column of UTF-8.
pub(super) fn text(name: &str, repetition: Repetition) -> TypePtr {
    column(name, Physical::BYTE_ARRAY, repetition, Some(LogicalType::String))
}

/// An optional column of i64.
pub(super) fn optional_i64(name: &str) -> TypePtr {
    column(name, Physical::INT64, Repetition::OPTIONAL, None)
}

/// A required list of required i64: the standard three levels.
pub(super) fn list_i64(name: &str) -> TypePtr {
    let list = Type::group_type_builder("list")
        .with_repetition(Repetition::REPEATED)
        .with_fields(vec![plain("element", Physical::INT64)])
        .build()
        .expect(VALID);
    let outer = Type::group_type_builder(name)
        .with_repetition(Repetition::REQUIRED)
        .with_converted_type(ConvertedType::LIST)
        .with_logical_type(Some(LogicalType::List))
        .with_fields(vec![Arc::new(list)])
        .build()
        .expect(VALID);
    Arc::new(outer)
}

/// The column of a tensor's values: Parquet's own type where its PLAIN bytes are the logical ones.
///
/// Booleans (bits in Parquet), integers below 32 bits (widened there) and floats that Parquet lacks
/// are opaque values of the dtype's size.
pub(super) fn value(dtype: Dtype) -> TypePtr {
    const NAME: &str = "value";
    let required = |physical, logical| column(NAME, physical, Repetition::REQUIRED, logical);
    let unsigned = |bits| Some(LogicalType::integer(bits, false));
    match dtype {
        Dtype::F32 => required(Physical::FLOAT, None),
        Dtype::F64 => required(Physical::DOUBLE, None),
        Dtype::I32 => required(Physical::INT32, None),
        Dtype::I64 => required(Physical::INT64, None),
        Dtype::U32 => required(Physical::INT32, unsigned(32)),
        Dtype::U64 => required(Physical::INT64, unsigned(64)),
        Dtype::F16 => {
            let column = Type::primitive_type_builder(NAME, Physical::FIXED_LEN_BYTE_ARRAY)
                .with_repetition(Repetition::REQUIRED)
                .with_length(2)
                .with_logical_type(Some(LogicalType::Float16));
            Arc::new(column.build().expect(VALID))
        }
        _ => fixed(NAME, dtype.bytes() as usize),
    }
}

fn column(
    name: &str,
    physical: Physical,
    repetition: Repetition,
    logical: Option<LogicalType>,
) -> TypePtr {
    let column = Type::primitive_type_builder(name, physical)
        .with_repetition(repetition)
        .with_logical_type(logical);
    Arc::new(column.build().expect(VALID))
}
