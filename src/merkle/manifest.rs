//! The identity of a manifest: the tree over its descriptors' canonical JSON. See
//! `schema/manifest.md`.

use super::tree::{leaf_hash, root_of};
use crate::types::{
    digest::Digest,
    manifest::{Manifest, ManifestId},
};

/// The leaf hashes of the manifest's tree, in order.
pub fn manifest_leaves(manifest: &Manifest) -> Vec<Digest> {
    manifest.entries().map(|entry| leaf_hash(&entry)).collect()
}

/// What identifies the manifest: its tree's root, and the sizes that go with it.
pub fn manifest_id(manifest: &Manifest) -> ManifestId {
    let leaves = manifest_leaves(manifest);
    ManifestId { root: root_of(&leaves), count: leaves.len() as u64, bytes: manifest.bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        merkle::tree::{empty_root, node_hash},
        types::{
            manifest::{ArtifactType, Descriptor, group},
            tensor::{Dtype, TensorSpec},
        },
    };

    fn descriptor(name: &str) -> Descriptor {
        let spec = TensorSpec::new(name, Dtype::F32, &[2, 3]).unwrap();
        Descriptor::new(ArtifactType::Tensor, group::WEIGHTS, &spec, Digest::of(b"root"))
    }

    #[test]
    fn an_entry_is_spelled_so() {
        let manifest = Manifest::new(vec![descriptor("a")]).unwrap();
        let entry = manifest.entries().next().unwrap();
        let root = Digest::of(b"root");
        let spelled = format!(
            r#"{{"bytes":24,"dtype":"F32","group":"weights","name":"a","piece_log2":16,"root":"{root}","shape":[2,3],"type":"tensor"}}"#
        );
        assert_eq!(entry, spelled.as_bytes());
        let id = ManifestId { root: leaf_hash(&entry), count: 1, bytes: 24 };
        assert_eq!(manifest_id(&manifest), id);
        assert_eq!(Manifest::from_entries([&entry[..]]).unwrap(), manifest);
    }

    #[test]
    fn the_order_given_does_not_matter() {
        let id =
            |names: [&str; 2]| manifest_id(&Manifest::new(names.map(descriptor).to_vec()).unwrap());
        let [a, b] = ["a", "b"].map(|name| {
            let manifest = Manifest::new(vec![descriptor(name)]).unwrap();
            manifest_leaves(&manifest)[0]
        });
        assert_eq!(id(["b", "a"]), id(["a", "b"]));
        assert_eq!(id(["a", "b"]), ManifestId { root: node_hash(&a, &b), count: 2, bytes: 48 });
        let none = ManifestId { root: empty_root(), count: 0, bytes: 0 };
        assert_eq!(manifest_id(&Manifest::default()), none);
    }
}
