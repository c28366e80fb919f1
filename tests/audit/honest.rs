//! An honest ledger passes, and its report is what its schema says.

use super::*;

#[test]
fn an_honest_ledger_passes_with_a_key_from_outside_and_never_without() {
    let (run, _) = sealed(8);
    let report = audited(&run.path(), &AuditOptions::default(), &trust(rounds_key(&run)));
    assert_eq!(report.verdict, Verdict::Passed, "{:#?}", report.checks);
    let unasked = with(&report.checks, Status::NotRequired);
    let optional = [
        Check::Witnesses,
        Check::Consistency,
        Check::Receipts,
        Check::AnchorReceipts,
        Check::AnchoredHeads,
    ];
    assert_eq!(unasked, optional);
    let refusals = report.checks.iter().find(|line| line.check == Check::Refusals).unwrap();
    assert_eq!(refusals.checked, 2, "the cut file of each round was admitted again");

    let report = audited(&run.path(), &AuditOptions::default(), &Trust::default());
    assert_eq!(report.verdict, Verdict::Incomplete);
    let signatures = [Check::RoundsSignature, Check::SubmissionsSignature, Check::Witnesses];
    assert_eq!(with(&report.checks, Status::NotDone), signatures);

    let other = VerifierKey::new("test.example/run/rounds", rounds_key(&run).kind(), &{
        let mut key = [0; 32];
        key.copy_from_slice(
            &hex::decode("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
                .unwrap(),
        );
        key
    });
    let report = audited(&run.path(), &AuditOptions::default(), &trust(other.unwrap()));
    assert_eq!(report.verdict, Verdict::BadSignature);
}

#[test]
fn the_same_inputs_give_the_same_report_within_its_schema() {
    let (run, _) = sealed(8);
    let trust = trust(rounds_key(&run));
    let options = AuditOptions { sample: Some((2, vec![7])), plan: true, ..Default::default() };
    let one = serde_json::to_value(audited(&run.path(), &options, &trust)).unwrap();
    assert_eq!(one, serde_json::to_value(audited(&run.path(), &options, &trust)).unwrap());
    within_its_schema(one);
}

/// Holds a report, once the command has added its block `run`, against the schema.
pub fn within_its_schema(mut document: Value) {
    let schema = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/schema/report.schema.json"));
    let schema: Value = serde_json::from_slice(&schema.unwrap()).unwrap();
    document["schema_version"] = 1.into();
    document["run"] = serde_json::json!({
        "started": 1, "seconds": 0.5, "version": "0.1.0", "host": "h", "threads": 0
    });
    conforms(&document, &schema, &schema, "report");
}

/// As much of JSON Schema as the report's schema uses; any other keyword fails.
fn conforms(value: &Value, schema: &Value, root: &Value, at: &str) {
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$schema" | "$id" | "title" | "description" | "$defs" => {}
            "$ref" => {
                let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                conforms(value, &root["$defs"][name], root, at);
            }
            "type" => {
                let is = |name: &str| match name {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "integer" => value.is_u64(),
                    "number" => value.is_number(),
                    "boolean" => value.is_boolean(),
                    "null" => value.is_null(),
                    other => panic!("type {other}"),
                };
                let names: Vec<&str> = match rule {
                    Value::Array(names) => names.iter().map(|n| n.as_str().unwrap()).collect(),
                    name => vec![name.as_str().unwrap()],
                };
                assert!(names.into_iter().any(is), "{at}: {value} is no {rule}");
            }
            "const" => assert_eq!(value, rule, "{at}"),
            "enum" => assert!(rule.as_array().unwrap().contains(value), "{at}: {value}"),
            "pattern" => {
                let digits =
                    value.as_str().is_none_or(|t| t.bytes().all(|b| b.is_ascii_hexdigit()));
                assert!(digits && rule.as_str().unwrap().contains("[0-9a-f]"), "{at}: {value}");
            }
            "required" => {
                for name in rule.as_array().unwrap().iter().filter(|_| value.is_object()) {
                    assert!(value.get(name.as_str().unwrap()).is_some(), "{at} lacks {name}");
                }
            }
            "additionalProperties" => assert_eq!(rule, false),
            "properties" => {
                for (name, member) in value.as_object().into_iter().flatten() {
                    let known = rule.get(name).unwrap_or_else(|| panic!("{at} has {name}"));
                    conforms(member, known, root, &format!("{at}.{name}"));
                }
            }
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    conforms(item, rule, root, &format!("{at}[]"));
                }
            }
            other => panic!("{other} is not used"),
        }
    }
}
