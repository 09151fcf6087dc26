use super::timer::CmosTimer;
use super::*;
use crate::host::event;
use std::sync::Mutex;
use std::time::Instant;

/// Noon of 14 November 2023, a Tuesday, since 1970.
const NOON: u64 = 1_699_963_200;

fn cmos() -> Cmos {
    let mut cmos = Cmos::new(64 << 20, 0, Some(event().unwrap()), None);
    cmos.known = Duration::from_secs(NOON);
    cmos
}

fn at(millis: u64) -> Duration {
    Duration::from_secs(NOON) + Duration::from_millis(millis)
}

fn get(cmos: &mut Cmos, index: u8, now: Duration) -> u8 {
    cmos.index = index;
    cmos.read_at(now)
}

fn set(cmos: &mut Cmos, index: u8, byte: u8, now: Duration) {
    cmos.index = index;
    cmos.write_at(byte, now);
}

fn interrupts(cmos: &Cmos) -> u64 {
    cmos.line.as_ref().unwrap().read().unwrap_or(0)
}

#[test]
fn the_time_has_the_selected_format() {
    let mut cmos = cmos();
    let time = |cmos: &mut Cmos| [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| get(cmos, index, at(3_723_000)));
    assert_eq!(time(&mut cmos), [0x20, 0x23, 0x11, 0x14, 3, 0x13, 0x02, 0x03]);
    set(&mut cmos, REGISTER_B, 0x06, at(0));
    assert_eq!(time(&mut cmos), [20, 23, 11, 14, 3, 13, 2, 3]);
    set(&mut cmos, REGISTER_B, 0x00, at(0));
    assert_eq!(time(&mut cmos)[5], 0x81);
}

#[test]
fn a_time_that_is_set_goes_on_from_there() {
    let mut cmos = cmos();
    set(&mut cmos, REGISTER_B, SET | UPDATED | 0x02, at(0));
    assert_eq!(get(&mut cmos, REGISTER_B, at(0)), SET | 0x02, "no interrupt of updates");
    for (index, byte) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58)] {
        set(&mut cmos, index, byte, at(0));
    }
    assert_eq!([0, 2, 9].map(|index| get(&mut cmos, index, at(9_000))), [0x58, 0x59, 0x99], "it is stopped");
    set(&mut cmos, REGISTER_B, 0x02, at(10_000));
    assert_eq!([9, 7, 4, 0].map(|index| get(&mut cmos, index, at(11_000))), [0x99, 0x31, 0x23, 0x59]);
    assert_eq!(
        [0x32, 9, 7, 4, 0].map(|index| get(&mut cmos, index, at(12_000))),
        [0x20, 0x00, 0x01, 0x00, 0x00]
    );
}

#[test]
fn an_update_is_in_progress_before_each_second() {
    let mut cmos = cmos();
    for (millis, expected) in [(0, 0x26), (500, 0x26), (997, 0x26), (998, 0xa6), (999, 0xa6), (1000, 0x26)] {
        assert_eq!(get(&mut cmos, REGISTER_A, at(millis)), expected, "{millis}");
    }
    set(&mut cmos, REGISTER_A, 0xff, at(0));
    assert_eq!((get(&mut cmos, REGISTER_A, at(0)), get(&mut cmos, REGISTER_D, at(0))), (0x7f, 0x80));
}

#[test]
fn register_c_tells_the_events_once() {
    let mut cmos = cmos();
    assert_eq!(get(&mut cmos, REGISTER_C, at(0)), 0);
    // 1024 Hz: no event after half a millisecond, one after a whole one.
    assert_eq!(get(&mut cmos, REGISTER_C, at(0) + Duration::from_micros(500)), 0);
    assert_eq!(get(&mut cmos, REGISTER_C, at(1)), PERIODIC);
    assert_eq!(get(&mut cmos, REGISTER_C, at(1)), 0);
    assert_eq!(get(&mut cmos, REGISTER_C, at(1000)), PERIODIC | UPDATED);
    set(&mut cmos, REGISTER_A, 0x20, at(1000));
    set(&mut cmos, REGISTER_B, UPDATED | 0x02, at(1000));
    assert_eq!(get(&mut cmos, REGISTER_C, at(3000)), INTERRUPT | UPDATED);
    // A day and an alarm; a clock of the host that goes back.
    [(5, 0x12), (3, 0x30), (1, 0xff)]
        .iter()
        .for_each(|(index, byte)| set(&mut cmos, *index, *byte, at(3000)));
    assert_eq!(get(&mut cmos, REGISTER_C, at(1_799_000)) & ALARM, 0);
    assert_eq!(get(&mut cmos, REGISTER_C, at(1_800_000)) & ALARM, ALARM);
    assert_eq!(get(&mut cmos, REGISTER_C, at(0)), 0);
    let later = Duration::from_secs(u64::from(u32::MAX));
    assert_eq!(get(&mut cmos, REGISTER_C, later), INTERRUPT | UPDATED | ALARM);
}

#[test]
fn an_interrupt_waits_for_a_read_of_register_c() {
    let mut cmos = cmos();
    assert_eq!((cmos.service(at(0)), interrupts(&cmos)), (None, 0));
    set(&mut cmos, REGISTER_B, PERIODIC | 0x02, at(0));
    let next = cmos.service(at(0)).unwrap();
    assert!((Duration::from_micros(970)..Duration::from_micros(980)).contains(&next), "{next:?}");
    assert_eq!((cmos.service(at(1)), interrupts(&cmos)), (None, 1));
    assert_eq!((cmos.service(at(5)), interrupts(&cmos)), (None, 0), "the guest has not read it");
    assert_eq!(get(&mut cmos, REGISTER_C, at(5)), INTERRUPT | PERIODIC);
    assert!(cmos.service(at(5)).is_some() && interrupts(&cmos) == 0);
    set(&mut cmos, REGISTER_B, UPDATED | 0x02, at(5));
    assert_eq!(cmos.service(at(250)), Some(Duration::from_millis(750)));
    assert_eq!((cmos.service(at(1000)), interrupts(&cmos)), (None, 1));
}

#[test]
fn every_rate_has_its_frequency() {
    let mut cmos = cmos();
    let rates = std::array::from_fn::<_, 16, _>(|rate| {
        set(&mut cmos, REGISTER_A, rate as u8, at(0));
        cmos.frequency().unwrap_or(0)
    });
    assert_eq!(rates, [0, 256, 128, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2]);
}

#[test]
fn the_memory_tells_the_size_of_ram() {
    let word =
        |cmos: &mut Cmos, index| u16::from_le_bytes([index, index + 1].map(|index| get(cmos, index, at(0))));
    let mut small = cmos();
    let sizes = [0x15, 0x17, 0x30, 0x34].map(|index| word(&mut small, index));
    assert_eq!(sizes, [640, 63 * 1024, 63 * 1024, 48 * 16]);
    let mut large = Cmos::new(3 << 30, 1, None, None);
    assert_eq!([0x17, 0x30, 0x34].map(|index| word(&mut large, index)), [0xffff, 0xffff, 3056 * 16]);
    assert_eq!(
        [0x12, 0x19, 0x14, 0x10, 0x3d, 0x0f].map(|index| get(&mut large, index, at(0))),
        [0xf0, 47, 2, 0, 2, 0]
    );
    let mut two = Cmos::new(1 << 20, 2, None, None);
    assert_eq!([0x12, 0x19, 0x1a].map(|index| get(&mut two, index, at(0))), [0xff, 47, 47]);
    let sum: u16 = (0x10..0x2e).map(|index| u16::from(get(&mut large, index, at(0)))).sum();
    assert_eq!([0x2e, 0x2f].map(|index| get(&mut large, index, at(0))), sum.to_be_bytes());
    // The guest may write it.
    set(&mut large, 0x0f, 0x0a, at(0));
    assert_eq!(get(&mut large, 0x0f, at(0)), 0x0a);
    large.reset();
    assert_eq!(get(&mut large, 0x0f, at(0)), 0);
}

#[test]
fn the_ports_select_and_move_a_byte() {
    let mut cmos = cmos();
    assert!(cmos.write(0, 1, 0x8e).is_continue() && cmos.write(1, 1, 0x5a).is_continue());
    assert_eq!(cmos.read(1, 1).continue_value(), Some(0x5a));
    assert_eq!(cmos.read(0, 1).continue_value(), Some(u64::MAX));
    assert!(cmos.write(0, 2, 0x3c0e).is_continue());
    assert_eq!(cmos.read(1, 1).continue_value(), Some(0x3c));
    for index in 0..=255u64 {
        for byte in [0, 0x7f, 0x99, 0xff] {
            assert!(cmos.write(0, 2, byte << 8 | index).is_continue() && cmos.read(1, 4).is_continue());
            cmos.service(now());
        }
    }
    assert!(cmos.write(7, 8, u64::MAX).is_continue());
}

#[test]
fn the_thread_raises_interrupts_until_it_ends() {
    let (line, wake) = (event().unwrap(), Arc::new(event().unwrap()));
    let own = line.try_clone().unwrap();
    let cmos = Arc::new(Mutex::new(Cmos::new(1 << 20, 0, Some(own), Some(wake.clone()))));
    let timer = CmosTimer::start(cmos.clone(), wake).unwrap();
    // 8192 Hz.
    for data in [0x230a, 0x420b] {
        assert!(cmos.lock().unwrap().write(0, 2, data).is_continue());
    }
    let (mut count, start) = (0, Instant::now());
    while count < 20 && start.elapsed() < Duration::from_secs(10) {
        if line.read().is_ok() {
            count += 1;
            let mut cmos = cmos.lock().unwrap();
            assert!(cmos.write(0, 1, 0x0c).is_continue());
            assert_eq!(cmos.read(1, 1).continue_value().unwrap() & 0xc0, 0xc0);
        }
    }
    assert_eq!(count, 20);
    drop(timer);
}
