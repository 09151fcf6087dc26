//! Rules for model-specific registers, which this VMM applies instead of KVM.
//!
//! KVM exits for accesses to registers that it does not know, and to those in its filter
//! (`Documentation/virt/kvm/api.rst`, KVM_CAP_X86_USER_SPACE_MSR and KVM_X86_SET_MSR_FILTER). A register can have a
//! device, like a port ([`Devices::msrs`](crate::controller::Devices)), or a rule of the policy here.

use crate::controller::{ExitController, VcpuState};
use crate::exit::{Exit, Outcome};
use crate::host::parse_number;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

/// The rule for accesses to a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrRule {
    /// The guest gets #GP.
    Deny,
    /// A read returns 0. A write has no effect.
    Ignore,
    /// The access behaves as without a rule, and is logged. After 100 accesses to the register, they are only counted.
    Log,
}

/// Converts the same rule from the guest catalogue.
impl From<guest::MsrRule> for MsrRule {
    fn from(rule: guest::MsrRule) -> Self {
        match rule {
            guest::MsrRule::Deny => Self::Deny,
            guest::MsrRule::Ignore => Self::Ignore,
            guest::MsrRule::Log => Self::Log,
        }
    }
}

impl FromStr for MsrRule {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "deny" => Ok(Self::Deny),
            "ignore" => Ok(Self::Ignore),
            "log" => Ok(Self::Log),
            _ => Err(format!("{word:?} is not an MSR rule: give deny, ignore or log")),
        }
    }
}

/// Parses a register's number and its rule, `MSR=RULE`, such as `0x1a0=deny`.
///
/// # Errors
/// The text has another form, the number has more than 32 bits, or no rule has this name.
pub fn parse_msr_rule(text: &str) -> Result<(u32, MsrRule), String> {
    let (index, rule) = text.split_once('=').ok_or("give MSR=RULE, such as 0x1a0=deny")?;
    let index = parse_number(index)?.try_into().map_err(|_| "the number of an MSR has at most 32 bits")?;
    Ok((index, rule.parse()?))
}

/// The bits that firmware sets before it starts Linux: fast string operations (IA32_MISC_ENABLE), and write-back caching
/// as the default memory type (IA32_MTRR_DEF_TYPE). Intel SDM volume 4.
pub(crate) const LINUX_BOOT: [(u32, u64); 2] = [(0x1a0, 1), (0x2ff, 1 << 11 | 6)];

/// The number of accesses to a register that are logged. A guest can repeat an access without end.
const MAX_LOGGED: u32 = 100;

/// The rules, by register number.
#[derive(Debug, Default)]
pub struct MsrPolicy {
    rules: BTreeMap<u32, MsrRule>,
    /// The number of logged accesses to each register with the rule [`MsrRule::Log`].
    logged: BTreeMap<u32, AtomicU32>,
}

impl MsrPolicy {
    /// Sets the rule for a register. It replaces an earlier one.
    pub fn set(&mut self, index: u32, rule: MsrRule) {
        self.rules.insert(index, rule);
        if rule == MsrRule::Log {
            self.logged.insert(index, AtomicU32::new(0));
        }
    }

    /// Logs an access, `what`, to the register `index`. Returns false if it is one too many.
    fn log(&self, index: u32, what: impl FnOnce() -> String) -> bool {
        let Some(logged) = self.logged.get(&index) else { return false };
        if logged.load(Ordering::Relaxed) >= MAX_LOGGED {
            return false;
        }
        let number = logged.fetch_add(1, Ordering::Relaxed);
        if number < MAX_LOGGED {
            log::warn!("{}", what());
        }
        if number == MAX_LOGGED - 1 {
            log::warn!(
                "that was access {MAX_LOGGED} to MSR {index:#x}: further ones are counted, but not logged"
            );
        }
        number < MAX_LOGGED
    }

    /// The name of a register's rule, for the profile.
    pub(crate) fn name(&self, index: u32) -> Option<&'static str> {
        self.rules.get(&index).map(|rule| match rule {
            MsrRule::Deny => "rule: deny",
            MsrRule::Ignore => "rule: ignore",
            MsrRule::Log => "rule: log",
        })
    }

    /// The registers that have a rule.
    pub fn registers(&self) -> impl Iterator<Item = u32> {
        self.rules.keys().copied()
    }
}

/// The controller is shared by all vCPUs: the rules do not change during the run.
impl ExitController for &MsrPolicy {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        let index = match *exit {
            Exit::RdMsr { index } | Exit::WrMsr { index, .. } => index,
            _ => return Outcome::Unclaimed,
        };
        match (self.rules.get(&index), exit) {
            (None, _) => Outcome::Unclaimed,
            (Some(MsrRule::Deny), _) => Outcome::Fault,
            (Some(MsrRule::Ignore), Exit::RdMsr { .. }) => Outcome::Value(0),
            (Some(MsrRule::Ignore), _) => Outcome::Resume,
            (Some(MsrRule::Log), Exit::WrMsr { data, .. }) => {
                self.log(index, || format!("vCPU {} writes {data:#x} to MSR {index:#x}", vcpu.id()));
                Outcome::Unclaimed
            }
            (Some(MsrRule::Log), _) => {
                self.log(index, || format!("vCPU {} reads MSR {index:#x}", vcpu.id()));
                Outcome::Unclaimed
            }
        }
    }
}

/// The controller that forwards accesses to KVM: those with the rule [`MsrRule::Log`] that no device has claimed. KVM
/// treats the write as one of the host, and checks it less strictly than a guest write.
#[derive(Clone, Copy, Debug)]
pub struct MsrForwarder<'a>(pub &'a MsrPolicy);

impl ExitController for MsrForwarder<'_> {
    fn handle(&mut self, exit: &Exit, vcpu: &mut dyn VcpuState) -> Outcome {
        let logged = |index| self.0.rules.get(&index) == Some(&MsrRule::Log);
        match *exit {
            Exit::RdMsr { index } if logged(index) => {
                vcpu.msr(index).map_or(Outcome::Unclaimed, Outcome::Value)
            }
            Exit::WrMsr { index, data } if logged(index) && vcpu.set_msr(index, data) => Outcome::Resume,
            _ => Outcome::Unclaimed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::FakeVcpu;

    fn policy() -> MsrPolicy {
        let mut policy = MsrPolicy::default();
        for (index, rule) in [(1, MsrRule::Deny), (2, MsrRule::Ignore), (3, MsrRule::Log), (4, MsrRule::Log)]
        {
            policy.set(index, rule);
        }
        policy
    }

    #[test]
    fn each_rule_has_its_effect() {
        let policy = policy();
        let mut vcpu = FakeVcpu { msrs: [(3, 0x33)].into(), ..Default::default() };
        let mut read = |index| (&policy, MsrForwarder(&policy)).handle(&Exit::RdMsr { index }, &mut vcpu);
        assert!(matches!(read(0), Outcome::Unclaimed));
        assert!(matches!(read(1), Outcome::Fault));
        assert!(matches!(read(2), Outcome::Value(0)));
        assert!(matches!(read(3), Outcome::Value(0x33)));
        assert!(matches!(read(4), Outcome::Unclaimed), "KVM does not have it");
        let mut write =
            |index| (&policy, MsrForwarder(&policy)).handle(&Exit::WrMsr { index, data: 9 }, &mut vcpu);
        assert!(matches!(write(1), Outcome::Fault));
        assert!(matches!(write(2), Outcome::Resume));
        assert!(matches!(write(3), Outcome::Resume));
        assert!(matches!(write(4), Outcome::Unclaimed));
        assert_eq!(vcpu.msrs[&3], 9);
        assert!(matches!((&policy).handle(&Exit::Hlt, &mut vcpu), Outcome::Unclaimed));
    }

    #[test]
    fn the_last_rule_for_a_register_applies() {
        let mut policy = policy();
        policy.set(1, MsrRule::Ignore);
        assert!(matches!(
            (&policy).handle(&Exit::RdMsr { index: 1 }, &mut FakeVcpu::default()),
            Outcome::Value(0)
        ));
        assert_eq!(policy.registers().collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_bounded_number_of_accesses_to_each_register_is_logged() {
        let policy = policy();
        for index in [3, 4] {
            let logged = (0..1000).filter(|_| policy.log(index, String::new)).count();
            assert_eq!(logged, MAX_LOGGED as usize);
        }
        assert!(!policy.log(1, String::new), "it has another rule");
    }

    #[test]
    fn rules_are_parsed_by_name() {
        assert_eq!(
            ["deny", "ignore", "log"].map(str::parse),
            [Ok(MsrRule::Deny), Ok(MsrRule::Ignore), Ok(MsrRule::Log)]
        );
        assert!("allow".parse::<MsrRule>().is_err());
    }
}
