//! Do `subxt` and the metadata of a real runtime make the golden call and extrinsic, byte for byte?
//!
//! With the feature `chain` alone; nothing is connected to.
#![cfg(feature = "chain")]
#![allow(clippy::unwrap_used)]

mod common;

use std::{fs, sync::Arc};

use common::golden;
use gradledger::codec::sr25519::PublicKey;
use gradledger_anchor::{
    commitment::Field,
    extrinsic::call_arguments,
    hash::{Hash32, Hex},
};
use serde_json::Value;
use subxt::{
    OfflineClient,
    config::{
        DefaultExtrinsicParamsBuilder, SubstrateConfig,
        substrate::{SpecVersionForRange, SubstrateConfigBuilder},
    },
    metadata::Metadata,
    utils::{AccountId32, H256, MultiSignature},
};

fn hex(value: &Value) -> Vec<u8> {
    value.as_str().unwrap()[2..].parse::<Hex>().unwrap().0
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    hex(value).try_into().unwrap()
}

fn read(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden().join("chain").join(name)).unwrap()).unwrap()
}

/// A client of the golden chain, which never connects.
fn client(genesis: [u8; 32]) -> OfflineClient<SubstrateConfig> {
    let version = read("runtime-version-218.json")["result"].clone();
    let number = |name: &str| version[name].as_u64().unwrap() as u32;
    let spec_version = number("specVersion");
    let metadata = fs::read(golden().join("chain/metadata-218.scale")).unwrap();
    let metadata = Arc::new(Metadata::decode_from(&metadata).unwrap());
    let range = SpecVersionForRange {
        block_range: 0..u64::MAX,
        spec_version,
        transaction_version: number("transactionVersion"),
    };
    let config = SubstrateConfigBuilder::new()
        .set_genesis_hash(H256(genesis))
        .set_spec_version_for_block_ranges([range])
        .set_metadata_for_spec_versions([(spec_version, metadata)])
        .build();
    OfflineClient::new_with_config(config)
}

#[test]
fn golden_call_and_extrinsic_are_made_from_the_metadata() {
    let golden = read("proof.json");
    let client = client(array(&golden["genesis_hash"])).at_block(4u64).unwrap();
    let metadata = client.metadata();
    let pallet = metadata.pallet_by_name("Commitments").unwrap();
    let call = pallet.call_variant_by_name("set_commitment").unwrap();
    let netuid = golden["netuid"].as_u64().unwrap() as u16;
    let fields = [Field::sha256(&Hash32(array(&golden["round_root"])))];
    let index = [pallet.call_index(), call.index];
    let bytes = [&index[..], &call_arguments(netuid, &fields)].concat();
    assert_eq!(bytes, hex(&golden["call"]));
    // The runtime's own types read it, and write it again.
    let payload = client.tx().from_call_data_bytes(&bytes).unwrap();
    assert_eq!(client.tx().call_data(&payload).unwrap(), bytes);
    for wrong in [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat()] {
        assert!(client.tx().from_call_data_bytes(wrong).is_err());
    }
    // Immortal and of nonce 0, as the golden one was made. Length (2), version, address (33), kind.
    let extrinsic = hex(&golden["extrinsic"]);
    let signature: [u8; 64] = extrinsic[37..101].try_into().unwrap();
    let params = DefaultExtrinsicParamsBuilder::new().immortal().nonce(0).build();
    let mut signable = client.tx().create_signable_offline(&payload, params).unwrap();
    let hotkey = PublicKey::from_bytes(array(&golden["hotkey"])).unwrap();
    hotkey.verify(&signable.signer_payload().unwrap(), &signature).unwrap();
    let (account, signature) = (AccountId32(hotkey.to_bytes()), MultiSignature::Sr25519(signature));
    let made = signable.sign_with_account_and_signature(&account, &signature).unwrap();
    assert_eq!(made.into_encoded(), extrinsic);
}
