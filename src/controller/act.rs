//! Carries out what the policy says.
//!
//! Runs in: controller.  Trusts: the policy.  Owns: nothing.  Never: decides anything.

use super::{log, Controller};
use crate::policy::Action;
use crate::wire::control::ControllerMessage;

impl Controller {
    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::StartSeed { generation } => self.start_seed(generation),
            Action::EndSeed { generation } => self.end_seed(generation),
            Action::KillSeed { generation } => self.kill_seed(generation),
            Action::StartZygote { zygote, key } => self.start_zygote(zygote, key),
            Action::EndZygote { zygote } => self.end_zygote(zygote),
            Action::KillZygote { zygote } => self.kill_zygote(zygote),
            Action::Fork { lease, zygote, key } => self.fork_worker(lease, zygote, key),
            Action::Grant { frontend, want, pool, lease, lend, pid, cold, queued } => {
                let message = ControllerMessage::Grant { want, pool, lease, lend, pid, cold, queued };
                self.grant(frontend, lease, &message);
            }
            Action::Refuse { frontend, want, reason, retry_after_s, text } => {
                self.tell(frontend, &ControllerMessage::Refuse { want, reason, retry_after_s, text });
            }
            Action::Recall { frontend, lease, lend } => {
                self.tell(frontend, &ControllerMessage::Recall { lease, lend });
            }
            Action::Contended { frontend, pool, queued } => {
                self.tell(frontend, &ControllerMessage::Contended { pool, queued });
            }
            Action::Obituary { frontend, lease, lend, pid, wait_status } => {
                self.tell(frontend, &ControllerMessage::Obituary { lease, lend, pid, wait_status });
            }
            Action::Retire { lease } => self.retire(lease),
            Action::Interrupt { lease } => self.interrupt_worker(lease),
            Action::Kill { lease } => self.kill_worker(lease),
            Action::Forget { lease } => self.forget_worker(lease),
            Action::Throttled { key, delay_s, text } => {
                let name = self.pool_name(key).to_owned();
                log::error(&format!(
                    "mod_pool: pool {name}: its processes fail to start, next attempt in {delay_s} s: {text}"
                ));
            }
            // Its end is what the parent waits for.
            Action::Warm { generation } => self.end_wait(generation),
            Action::GenerationGone { generation } => {
                self.tables.remove(&generation);
            }
            Action::Done => self.done = true,
        }
    }
}
