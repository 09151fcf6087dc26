// Chapter 16: a driver to try your VMM with. It asks the entropy device for 8 bytes, and prints them in hexadecimal.
// If a step fails, it prints the letter of the step, and halts.
.intel_syntax noprefix
.code64
.set DEVICE, 0x10000000
.set TABLE, 0x20000
.set AVAILABLE, 0x21000
.set USED, 0x22000
.set BUFFER, 0x30000
.globl _start
_start:
    // M: the magic value, the version, and the kind of device.
    mov bl, 'M'
    cmp dword ptr [DEVICE + 0x000], 0x74726976
    jne failed
    cmp dword ptr [DEVICE + 0x004], 2
    jne failed
    cmp dword ptr [DEVICE + 0x008], 4
    jne failed

    // F: the driver takes the feature VIRTIO_F_VERSION_1, bit 0 of the second half.
    mov bl, 'F'
    mov dword ptr [DEVICE + 0x070], 0
    mov dword ptr [DEVICE + 0x070], 1
    mov dword ptr [DEVICE + 0x070], 3
    mov dword ptr [DEVICE + 0x014], 1
    test dword ptr [DEVICE + 0x010], 1
    jz failed
    mov dword ptr [DEVICE + 0x024], 1
    mov dword ptr [DEVICE + 0x020], 1
    mov dword ptr [DEVICE + 0x070], 0xb
    test dword ptr [DEVICE + 0x070], 8
    jz failed

    // Q: queue 0 gets 4 places.
    mov bl, 'Q'
    mov dword ptr [DEVICE + 0x030], 0
    cmp dword ptr [DEVICE + 0x034], 4
    jb failed
    mov dword ptr [DEVICE + 0x038], 4
    mov dword ptr [DEVICE + 0x080], TABLE
    mov dword ptr [DEVICE + 0x090], AVAILABLE
    mov dword ptr [DEVICE + 0x0a0], USED
    mov dword ptr [DEVICE + 0x044], 1
    mov dword ptr [DEVICE + 0x070], 0xf

    // U: descriptor 0 is a buffer of 8 bytes for the device to write (flag 2).
    mov bl, 'U'
    mov qword ptr [TABLE], BUFFER
    mov dword ptr [TABLE + 8], 8
    mov word ptr [TABLE + 12], 2
    mov word ptr [AVAILABLE + 4], 0
    mov word ptr [AVAILABLE + 2], 1
    mov dword ptr [DEVICE + 0x050], 0
    mov ecx, 1000
wait:
    cmp word ptr [USED + 2], 1
    je used
    dec ecx
    jnz wait
    jmp failed
used:
    cmp dword ptr [USED + 8], 8
    jne failed

    mov esi, BUFFER
    mov ecx, 8
next:
    mov al, [rsi]
    shr al, 4
    call digit
    mov al, [rsi]
    and al, 15
    call digit
    inc esi
    dec ecx
    jnz next
    jmp end

failed:
    mov al, bl
    out 0xe9, al
end:
    mov al, '\n'
    out 0xe9, al
    hlt

digit:
    add al, '0'
    cmp al, '9'
    jbe decimal
    add al, 'a' - '9' - 1
decimal:
    out 0xe9, al
    ret
