//! Disputes: two sides, each judged by itself, and what they come to together.

use super::{Check, Verified, checks, judge};
use crate::audit::{
    bundle::{Bundle, Claim},
    checks::{Checklist, Finding, Status},
    trust::Trust,
};

/// Judges both sides of a dispute, each by itself.
pub(super) fn dispute(bundle: &Bundle, trust: &Trust) -> Verified {
    let mut list = Checklist::new(checks(&bundle.claim), &trust.waived);
    let mut sides = Vec::new();
    for (name, member) in [("a", "a.tar"), ("b", "b.tar")] {
        let side = Bundle::read(bundle.member(member)).ok();
        let claim = side.as_ref().map(|side| &side.claim);
        let Some((side, Claim::Fold(claim))) = side.as_ref().zip(claim) else {
            list.found(Check::Format, Finding::new(format!("{member} is no claim about a fold")));
            continue;
        };
        let judged = judge(side, trust);
        list.absorb(name, &judged.lines);
        sides.push((name, judged, (claim.round, claim.tensor, claim.piece.index), claim.digest));
    }
    let kind = Some(bundle.claim.kind());
    let [a, b] = &sides[..] else {
        return Verified { kind, subject: String::new(), lines: list.lines(), evidence: None };
    };
    if a.2 != b.2 || a.3 == b.3 {
        list.found(Check::Format, Finding::new("the two sides have no piece in dispute"));
    }
    let outcome = |(name, judged, ..): &(&str, Verified, _, _)| match &judged.evidence {
        Some(_) => format!("{name} is wrong"),
        None if judged.lines.iter().any(|line| line.status == Status::Failed) => {
            format!("{name} proves nothing")
        }
        None if judged.lines.iter().any(|line| line.status == Status::NotDone) => {
            format!("{name} follows, but nobody is known to have signed it")
        }
        None => format!("{name} follows"),
    };
    let mut subject = format!("{}: {}, {}", a.1.subject, outcome(a), outcome(b));
    let holds = |side: &Verified| side.lines.iter().all(|line| line.status != Status::Failed);
    if holds(&a.1) && holds(&b.1) {
        let read = |member| Bundle::read(bundle.member(member)).ok();
        let differs = read("a.tar").zip(read("b.tar")).map_or("", |(a, b)| inputs(&a, &b));
        subject += &format!("; they fold different things, the first of them: {differs}");
    }
    let wrong = |(name, judged, ..): &(&str, Verified, _, _)| {
        judged.evidence.as_ref().map(|text| format!("{name}: {text}"))
    };
    let evidence: Vec<String> = [a, b].into_iter().filter_map(wrong).collect();
    let evidence = (!evidence.is_empty()).then(|| evidence.join("; "));
    Verified { kind, subject, lines: list.lines(), evidence }
}

/// The first input in which two folds that both follow differ.
fn inputs(a: &Bundle, b: &Bundle) -> &'static str {
    let same = |member| a.member(member) == b.member(member);
    match () {
        () if !same("base.jsonl") => {
            "the base, so they differ in an earlier round or in the genesis"
        }
        () if !same("dispositions.jsonl") => "who was accepted",
        () if !same("deltas.jsonl") => "the deltas",
        () if !same("pieces") => "the plan",
        () => "the rule, or what is left unchanged",
    }
}
