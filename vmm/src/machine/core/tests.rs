use super::*;
use crate::memory::{TABLES, TABLES_SIZE};
use crate::x86::modes::{Mode, VcpuIndex};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

const KILLED: CoreCause<'_> = CoreCause { first: 0, signal: 11, vmcoreinfo: None };

/// A file in memory.
#[derive(Default)]
struct InMemory(Vec<u8>, u64);

impl Write for InMemory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SparseWrite for InMemory {
    fn skip(&mut self, len: u64) -> io::Result<()> {
        self.0.resize(self.0.len() + len as usize, 0);
        self.1 += len;
        Ok(())
    }
}

fn vcpu(id: u32, mode: Mode) -> CoreVcpu {
    let sregs = modes::sregs(mode, Sregs::default(), TABLES, VcpuIndex::ALONE);
    let regs = Regs { rip: 0x1234, rsp: 0x8000, rax: 0x1122_3344_5566_7788, ..Regs::default() };
    CoreVcpu { id, regs, sregs, kernel_gs_base: 7 }
}

fn memory() -> GuestMemory {
    let memory = GuestMemory::new(&[(Gpa(0), 0x10_0000), (TABLES, TABLES_SIZE)]).unwrap();
    memory.write(Gpa(0x1234), b"code").unwrap();
    memory
}

/// The program headers: type, linear address, physical address, content.
type Header = (u32, u64, u64, Vec<u8>);

fn headers<H: FileHeader<Endian = Endianness>>(file: &[u8]) -> Vec<Header> {
    let header = H::parse(file).unwrap();
    let endian = header.endian().unwrap();
    assert_eq!(header.e_type(endian), elf::ET_CORE);
    let all = header.program_headers(endian, file).unwrap().iter();
    all.map(|one| {
        let data = one.data(endian, file).unwrap().to_vec();
        let align: u64 = one.p_align(endian).into();
        assert_eq!(align == 0, one.p_type(endian) == elf::PT_LOAD, "crash needs it");
        (one.p_type(endian).0, one.p_vaddr(endian).into(), one.p_paddr(endian).into(), data)
    })
    .collect()
}

#[test]
fn a_guest_without_paging_has_its_physical_addresses() {
    let mut file = InMemory::default();
    let summary = write(&[vcpu(0, Mode::Protected)], &memory(), KILLED, &mut file, &|| false).unwrap();
    assert_eq!((summary.memory, summary.written), (0x10_0000 + TABLES_SIZE, 0x1000));
    assert_eq!(file.1, summary.memory - 0x1000, "zero pages are holes");
    let headers = headers::<elf::FileHeader32<Endianness>>(&file.0);
    assert_eq!(headers.iter().map(|header| header.0).collect::<Vec<_>>(), [4, 1, 1]);
    let (_, linear, physical, content) = &headers[1];
    assert_eq!((*linear, *physical, content.len()), (0, 0, 0x10_0000));
    assert_eq!(&content[0x1234..0x1238], b"code");
    assert_eq!((headers[2].1, headers[2].3.len()), (TABLES.0, TABLES_SIZE as usize));
}

#[test]
fn the_notes_have_the_registers_of_each_vcpu() {
    let mut file = InMemory::default();
    write(&[vcpu(3, Mode::Real), vcpu(0, Mode::Real)], &memory(), KILLED, &mut file, &|| false).unwrap();
    let headers = headers::<elf::FileHeader32<Endianness>>(&file.0);
    let notes = &headers[0].3;
    let owners = [&b"CORE\0"[..], b"QEMU\0", b"VMM\0"];
    let count = |owner: &[u8]| notes.windows(owner.len()).filter(|window| *window == owner).count();
    assert_eq!(owners.map(count), [2, 2, 2]);
    let status = &notes[20..];
    assert_eq!((status[12], status[24]), (11, 4), "the signal, and the number of the process");
    let word = |at: usize| u32::from_le_bytes(status[at..at + 4].try_into().unwrap());
    assert_eq!((word(72 + 6 * 4), word(72 + 12 * 4)), (0x5566_7788, 0x1234), "EAX and EIP");
}

#[test]
fn a_linux_kernel_has_its_note_and_its_vcpus_in_order() {
    let order = |vmcoreinfo| {
        let cause = CoreCause { first: 1, signal: 6, vmcoreinfo };
        let mut file = InMemory::default();
        write(&[vcpu(0, Mode::Real), vcpu(1, Mode::Real)], &memory(), cause, &mut file, &|| false).unwrap();
        let notes = headers::<elf::FileHeader32<Endianness>>(&file.0).remove(0).3;
        let has_note = notes.ends_with(b"VMCOREINFO\0\0OSRELEASE=6.1.0\n");
        // The number of the process of the first vCPU.
        (notes[20 + 24], has_note)
    };
    assert_eq!(order(None), (2, false));
    assert_eq!(order(Some(b"OSRELEASE=6.1.0\n")), (1, true));
}

#[test]
fn a_core_can_be_given_up() {
    let mut file = InMemory::default();
    let given_up = write(&[vcpu(0, Mode::Real)], &memory(), CoreCause::default(), &mut file, &|| true);
    assert_eq!(given_up.unwrap_err().kind(), io::ErrorKind::Interrupted);
}

#[test]
fn the_page_tables_give_the_linear_addresses() {
    let memory = memory();
    for (at, entry) in [
        (0x2000, 0x3003u64),
        (0x2ff8, 0x3003),
        (0x3000, 0x4003),
        (0x4000, 0x5003),
        (0x5008, 0x1003),
        (0x5010, 0x2003),
    ] {
        memory.write(Gpa(at), &entry.to_le_bytes()).unwrap();
    }
    // The last page is no memory.
    memory.write(Gpa(0x5018), &0x7000_0003u64.to_le_bytes()).unwrap();
    let mut long = vcpu(0, Mode::Long);
    long.sregs.cr3 = 0x2000;
    let mut file = InMemory::default();
    assert!(write(&[long], &memory, CoreCause::default(), &mut file, &|| false).unwrap().has_all_mappings);
    let headers = headers::<elf::FileHeader64<Endianness>>(&file.0);
    let loads: Vec<_> =
        headers[1..].iter().map(|(_, linear, gpa, content)| (*linear, *gpa, content.len())).collect();
    let upper = 0xffff_ff80_0000_0000;
    assert_eq!(
        loads,
        [
            (0x1000, 0x1000, 0x2000),
            (upper + 0x1000, 0x1000, 0x2000),
            (PHYSICAL, 0, 0x10_0000),
            (PHYSICAL | TABLES.0, TABLES.0, TABLES_SIZE as usize),
        ]
    );
    assert_eq!(&headers[2].3[0x234..0x238], b"code");
}

#[test]
fn page_tables_that_lead_to_each_other_end() {
    let memory = memory();
    for index in 0..512 {
        memory.write(Gpa(0x2000 + index * 8), &0x2003u64.to_le_bytes()).unwrap();
    }
    let mut long = vcpu(0, Mode::Long);
    long.sregs.cr3 = 0x2000;
    let mut file = InMemory::default();
    let summary = write(&[long], &memory, CoreCause::default(), &mut file, &|| false).unwrap();
    assert!(!summary.has_all_mappings);
    assert!(headers::<elf::FileHeader64<Endianness>>(&file.0).len() <= MAX_MAPPINGS + 3);
}

#[test]
fn narrow_and_pae_tables_are_walked() {
    let memory = memory();
    memory.write(Gpa(0x2000), &0x3003u32.to_le_bytes()).unwrap();
    memory.write(Gpa(0x2004), &0x83u32.to_le_bytes()).unwrap();
    memory.write(Gpa(0x3000 + 5 * 4), &0x7003u32.to_le_bytes()).unwrap();
    let mut guest = vcpu(0, Mode::Protected);
    guest.sregs.cr0 |= modes::CR0_PG;
    (guest.sregs.cr3, guest.sregs.cr4) = (0x2000, modes::CR4_PSE);
    let all = mappings(&memory, &guest.sregs, 9);
    let mapping = |linear, gpa, len| Mapping { linear, gpa, len };
    assert_eq!(all, (vec![mapping(0x5000, 0x7000, 0x1000), mapping(0x40_0000, 0, 0x40_0000)], true));
    memory.write(Gpa(0x2000), &0x3001u64.to_le_bytes()).unwrap();
    memory.write(Gpa(0x2008), &0u64.to_le_bytes()).unwrap();
    memory.write(Gpa(0x3000), &0x20_0083u64.to_le_bytes()).unwrap();
    memory.write(Gpa(0x3010), &0u64.to_le_bytes()).unwrap();
    guest.sregs.cr4 = modes::CR4_PAE;
    assert_eq!(mappings(&memory, &guest.sregs, 9), (vec![mapping(0, 0x20_0000, 0x20_0000)], true));
}
