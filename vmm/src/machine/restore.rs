//! Putting a guest back to its start: only the memory that has changed is restored.
//!
//! The first time, all of the guest's memory is dropped and filled anew, and KVM begins to log the pages that the guest
//! changes (KVM_MEM_LOG_DIRTY_PAGES). From then on only those pages are restored, and those that the host has changed. A
//! machine that is never reset pays nothing for this.

use crate::boot::Image;
use crate::error::Error;
use crate::kvm::irqchip::Irqchip;
use crate::kvm::vm::Vm;
use crate::memory::{Gpa, GuestMemory, PAGE};

const PAGE_BYTES: usize = PAGE as usize;

/// The guest's memory as it is before the first run.
pub(super) struct Restore {
    image: Image,
    /// The GDT, page tables and task state that the machine provides.
    tables: Vec<(Gpa, Vec<u8>)>,
    /// KVM and [`GuestMemory`] log changed pages.
    logs: bool,
    /// The interrupt controllers of a new machine. `None` if they are not in the kernel.
    irqchip: Option<Irqchip>,
}

impl Restore {
    /// Memory that holds `image` and `tables`, and is zero elsewhere.
    pub(super) fn new(image: Image, tables: Vec<(Gpa, Vec<u8>)>, irqchip: Option<Irqchip>) -> Self {
        Self { image, tables, logs: false, irqchip }
    }

    /// The guest's image.
    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    /// Takes another guest.
    pub(super) fn load(&mut self, image: Image, tables: Vec<(Gpa, Vec<u8>)>) {
        (self.image, self.tables) = (image, tables);
        // All memory is filled anew, because the bytes of the guest before are in pages that were not changed.
        self.logs = false;
    }

    /// Restores the interrupt controllers of `vm`.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn irqchip(&self, vm: &Vm) -> Result<(), Error> {
        self.irqchip.iter().try_for_each(|state| vm.set_irqchip(state))
    }

    /// Restores the memory of a machine. Without KVM, there is no `vm`, and all changes are in the log of the host's writes.
    ///
    /// # Errors
    /// KVM cannot log changed pages, or the host cannot drop memory.
    pub(super) fn memory(&mut self, vm: Option<&Vm>, memory: &GuestMemory) -> Result<(), Error> {
        if !self.logs {
            memory.clear()?;
            self.fill(memory)?;
            vm.map_or(Ok(()), |vm| vm.log_changes(memory))?;
            memory.log_writes();
            self.logs = true;
            return Ok(());
        }
        let mut page = [0; PAGE_BYTES];
        let changed = vm.map(|vm| vm.changed_pages(memory)).transpose()?.unwrap_or_default();
        for start in changed.into_iter().chain(memory.take_written_pages()) {
            self.page(start, &mut page);
            memory.restore(start, &page)?;
        }
        Ok(())
    }

    /// Writes the image and the tables into memory that is zero.
    fn fill(&self, memory: &GuestMemory) -> Result<(), Error> {
        for (start, bytes) in self.image.contents().chain(self.tables()) {
            memory.write(start, bytes)?;
        }
        Ok(())
    }

    fn tables(&self) -> impl Iterator<Item = (Gpa, &[u8])> {
        self.tables.iter().map(|(start, bytes)| (*start, bytes.as_slice()))
    }

    /// Fills `page` with the bytes that belong into the page at `start`.
    fn page(&self, start: Gpa, page: &mut [u8; PAGE_BYTES]) {
        page.fill(0);
        for (first, bytes) in self.image.contents().chain(self.tables()) {
            // Offsets of the bytes in the page, and of the page in the bytes: one of the two is zero.
            let to = usize::try_from(first.0.saturating_sub(start.0)).unwrap_or(usize::MAX);
            let from = usize::try_from(start.0.saturating_sub(first.0)).unwrap_or(usize::MAX);
            if let (Some(to), Some(from)) = (page.get_mut(to..), bytes.get(from..)) {
                to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::modes::Mode;

    #[test]
    fn a_page_has_the_bytes_that_were_loaded_there() {
        let bytes: Vec<u8> = (0..0x2000u32).map(|index| (index % 251) as u8 + 1).collect();
        let image = Image::flat(bytes.clone(), Mode::Real, Gpa(0xf80)).unwrap();
        let restore = Restore::new(image, vec![(Gpa(0x5010), vec![7; 3])], None);
        let mut page = [9; PAGE_BYTES];
        let mut at = |start| {
            restore.page(Gpa(start), &mut page);
            page
        };
        assert!(at(0)[..0xf80].iter().all(|byte| *byte == 0));
        assert_eq!(at(0)[0xf80..], bytes[..0x80]);
        assert_eq!(at(0x1000)[..], bytes[0x80..0x1080]);
        assert_eq!(at(0x2000)[..0xf80], bytes[0x1080..]);
        assert!(at(0x2000)[0xf80..].iter().all(|byte| *byte == 0));
        assert_eq!(at(0x5000)[0xe..0x15], [0, 0, 7, 7, 7, 0, 0]);
        assert_eq!(at(0x9000), [0; PAGE_BYTES]);
    }
}
