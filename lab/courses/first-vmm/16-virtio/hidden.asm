; Chapter 16: a driver for an entropy device over MMIO. It polls the used ring, and prints what works.
bits 64
org 0x1000
PRINT equ 0xe9
DEVICE equ 0x10000000
; The three parts of the queue, and the buffers.
TABLE equ 0x20000
AVAILABLE equ 0x21000
USED equ 0x22000
BUFFERS equ 0x30000
LENGTH equ 8
NEXT equ 1
WRITE equ 2

%macro set 2 ; a register, a value
    mov dword [DEVICE + %1], %2
%endmacro
; Ends with a message if a register does not have this value.
%macro expect 3 ; the register, the value, the message
    mov eax, [DEVICE + %1]
    mov ecx, %2
    mov edx, %3
    cmp eax, ecx
    jne fail
%endmacro
%macro done 1
    mov edx, %1
    call print
%endmacro
%macro describe 5 ; number, address, length, flags, next
    mov qword [TABLE + %1 * 16], %2
    mov dword [TABLE + %1 * 16 + 8], %3
    mov word [TABLE + %1 * 16 + 12], %4
    mov word [TABLE + %1 * 16 + 14], %5
%endmacro

start:
    expect 0x000, 0x74726976, magic
    expect 0x004, 2, version
    expect 0x008, 4, device_id
    done found

; Features: the device has the bit 32 and no other, and insists on it.
    set 0x070, 0
    expect 0x070, 0, status_reset
    set 0x070, 1
    set 0x070, 3
    expect 0x070, 3, status_driver
    set 0x014, 0
    expect 0x010, 0, features_low
    set 0x014, 1
    expect 0x010, 1, features_high
    set 0x024, 0
    set 0x020, 0
    set 0x024, 1
    set 0x020, 0
    set 0x070, 0xb
    expect 0x070, 3, without_version
    set 0x024, 0
    set 0x020, 0x20
    set 0x024, 1
    set 0x020, 1
    set 0x070, 0xb
    expect 0x070, 3, unknown_feature
    done features

; A reset forgets all features.
    set 0x070, 0
    expect 0x070, 0, status_reset
    set 0x070, 1
    set 0x070, 3
    set 0x070, 0xb
    expect 0x070, 3, remembers
    call start_device
    done ready

; One buffer.
    describe 0, BUFFERS, 16, WRITE, 0
    xor eax, eax
    call submit
    xor eax, eax
    mov ebx, 16
    call check_used
    mov edi, BUFFERS
    mov ecx, 16
    call check_filled
    expect 0x060, 1, interrupt_status
    set 0x064, 1
    expect 0x060, 0, interrupt_ack
    done one

; A chain of three buffers, and one that the device must not write to.
    describe 5, BUFFERS + 0x100, 24, WRITE | NEXT, 2
    describe 2, BUFFERS + 0x200, 16, NEXT, 7
    describe 7, BUFFERS + 0x300, 17, WRITE | NEXT, 1
    describe 1, BUFFERS + 0x400, 33, WRITE, 0
    mov eax, 5
    call submit
    mov eax, 5
    mov ebx, 24 + 17 + 33
    call check_used
    mov edi, BUFFERS + 0x100
    mov ecx, 24
    call check_filled
    mov edi, BUFFERS + 0x300
    mov ecx, 17
    call check_filled
    mov edi, BUFFERS + 0x400
    mov ecx, 33
    call check_filled
    mov edx, not_writable
    mov edi, BUFFERS + 0x200
    mov ecx, 16
    call is_untouched
    jne fail_text
; Two buffers with the same bytes would not be random.
    mov edx, equal
    mov rax, [BUFFERS + 0x100]
    cmp rax, [BUFFERS]
    je fail_text
    mov rax, [BUFFERS + 0x400]
    cmp rax, [BUFFERS + 0x100]
    je fail_text
    done chain

; Two chains at one notification, ten times: the rings wrap around.
    mov r15d, 10
again:
    describe 3, BUFFERS + 0x500, 8, WRITE, 0
    describe 4, BUFFERS + 0x600, 12, WRITE, 0
    mov eax, 3
    call make_available
    mov eax, 4
    call submit
    mov edx, two_chains
    mov eax, [BUFFERS + 0x500]
    cmp eax, 0x5a5a5a5a
    je fail_text
    mov eax, 3
    mov ebx, 8
    call check_used
    mov eax, 4
    mov ebx, 12
    call check_used
    dec r15d
    jnz again
    done wrap

; A buffer outside of the memory, its length beyond the end, a descriptor that does not exist, a circle.
    describe 6, 0x40000000, 16, WRITE, 0
    mov eax, 6
    mov r14d, outside
    call must_break
    describe 6, 0x1ffff0, 0xfffffff0, WRITE, 0
    mov eax, 6
    mov r14d, beyond
    call must_break
    mov eax, 6000
    mov r14d, no_descriptor
    call must_break
    describe 6, BUFFERS + 0x700, 16, WRITE | NEXT, 6
    mov eax, 6
    mov r14d, circle
    call must_break
    done broken
    mov edx, text
    call print
    hlt

; Resets the device, and brings it up to DRIVER_OK.
start_device:
    mov edi, TABLE
    mov ecx, 0x3000 / 8
    xor eax, eax
    rep stosq
    mov edi, BUFFERS
    mov ecx, 0x800 / 8
    mov rax, 0x5a5a5a5a5a5a5a5a
    rep stosq
    xor r13d, r13d
    set 0x070, 0
    set 0x070, 1
    set 0x070, 3
    set 0x024, 0
    set 0x020, 0
    set 0x024, 1
    set 0x020, 1
    set 0x070, 0xb
    expect 0x070, 0xb, status_features
    set 0x030, 1
    expect 0x034, 0, second_queue
    set 0x030, 0
    expect 0x044, 0, not_ready
    mov eax, [DEVICE + 0x034]
    mov ecx, LENGTH
    mov edx, longest
    cmp eax, ecx
    jb fail
    set 0x038, LENGTH
    set 0x080, TABLE
    set 0x084, 0
    set 0x090, AVAILABLE
    set 0x094, 0
    set 0x0a0, USED
    set 0x0a4, 0
    set 0x044, 1
    expect 0x044, 1, queue_ready
    set 0x070, 0xf
    expect 0x070, 0xf, status_ok
    ret

; Puts the chain that begins at descriptor EAX into the available ring. submit also notifies the device.
make_available:
    movzx ecx, word [AVAILABLE + 2]
    mov esi, ecx
    and esi, LENGTH - 1
    mov [AVAILABLE + 4 + rsi * 2], ax
    inc ecx
    mov [AVAILABLE + 2], cx
    ret
submit:
    call make_available
    set 0x050, 0
    ret

; Waits for the next used element. It must have the head EAX, and the length EBX. R13 counts the elements.
check_used:
    mov r12d, eax
    mov ecx, 1000
poll:
    cmp [USED + 2], r13w
    jne used
    dec ecx
    jnz poll
    mov edx, not_used
    test dword [DEVICE + 0x070], 0x40
    jz fail_text
    mov edx, needs_reset
    jmp fail_text
used:
    mov esi, r13d
    and esi, LENGTH - 1
    inc r13d
    mov eax, [USED + 4 + rsi * 8]
    mov ecx, r12d
    mov edx, used_head
    cmp eax, ecx
    jne fail
    mov eax, [USED + 8 + rsi * 8]
    mov ecx, ebx
    mov edx, used_length
    cmp eax, ecx
    jne fail
    ret

; The ECX bytes at RDI are new, and the 16 bytes behind them are not.
check_filled:
    mov r8, rdi
    mov r9d, ecx
    lea rdi, [r8 + r9]
    mov ecx, 16
    call is_untouched
    mov edx, too_far
    jne fail_text
    mov rax, 0x5a5a5a5a5a5a5a5a
    mov edx, not_filled
    cmp [r8], rax
    je fail_text
    cmp [r8 + r9 - 8], rax
    je fail_text
    ret

; Sets ZF if the ECX bytes at RDI are 0x5a, and leaves RDI behind them.
is_untouched:
    mov al, 0x5a
    repe scasb
    ret

; Submits the chain at EAX. The device must answer with NEEDS_RESET, and not with a used element. R14 is the message.
must_break:
    push rax
    call start_device_again
    pop rax
    call submit
    mov ecx, [DEVICE + 0x070]
    mov edx, r14d
    test ecx, 0x40
    jz fail_text
    cmp word [USED + 2], 0
    jne fail_text
    ret

; As start_device, but the table of descriptors keeps its content.
start_device_again:
    mov rax, [TABLE + 6 * 16]
    mov rbx, [TABLE + 6 * 16 + 8]
    push rax
    push rbx
    call start_device
    pop rbx
    pop rax
    mov [TABLE + 6 * 16], rax
    mov [TABLE + 6 * 16 + 8], rbx
    ret

; Prints the message at EDX, and the values EAX (read) and ECX (expected).
fail:
    push rcx
    push rax
    call print
    mov edx, was
    call print
    pop rax
    call number
    mov edx, should_be
    call print
    pop rax
    call number
    mov al, 10
    out PRINT, al
    hlt
fail_text:
    call print
    mov al, 10
    out PRINT, al
    hlt

print:
    mov al, [rdx]
    inc rdx
    test al, al
    jz printed
    out PRINT, al
    jmp print
printed:
    ret

number:
    mov ebx, eax
    mov ecx, 28
digit:
    mov eax, ebx
    shr eax, cl
    and al, 15
    add al, '0'
    cmp al, '9'
    jbe decimal
    add al, 'a' - '9' - 1
decimal:
    out PRINT, al
    sub ecx, 4
    jns digit
    ret

found db "found an entropy device", 10, 0
features db "features", 10, 0
ready db "ready", 10, 0
one db "one buffer", 10, 0
chain db "a chain", 10, 0
wrap db "two chains, ten times", 10, 0
broken db "broken chains", 10, 0

magic db "MagicValue", 0
version db "Version", 0
device_id db "DeviceID", 0
status_reset db "Status after a reset", 0
status_driver db "Status after ACKNOWLEDGE and DRIVER", 0
features_low db "DeviceFeatures 0 to 31", 0
features_high db "DeviceFeatures 32 to 63", 0
without_version db "Status after FEATURES_OK without VIRTIO_F_VERSION_1", 0
unknown_feature db "Status after FEATURES_OK with a feature that was not offered", 0
remembers db "Status after FEATURES_OK: a reset must forget the features of the driver", 0
status_features db "Status after FEATURES_OK with VIRTIO_F_VERSION_1", 0
second_queue db "QueueNumMax of queue 1, which does not exist", 0
not_ready db "QueueReady after a reset", 0
longest db "QueueNumMax of queue 0", 0
queue_ready db "QueueReady", 0
status_ok db "Status after DRIVER_OK", 0
interrupt_status db "InterruptStatus after a used buffer", 0
interrupt_ack db "InterruptStatus after InterruptACK", 0
not_used db "the index of the used ring does not change after the notification", 0
needs_reset db "the device does not take a chain that is right, and sets NEEDS_RESET", 0
used_head db "head of the used element", 0
used_length db "length of the used element", 0
too_far db "bytes behind the buffer were changed", 0
not_filled db "the buffer was not filled to its end", 0
not_writable db "the device wrote to a buffer without the flag WRITE", 0
equal db "two buffers have the same bytes", 0
two_chains db "the first of two chains was not filled", 0
outside db "a buffer outside of the memory must set NEEDS_RESET, and use nothing", 0
beyond db "a buffer whose end is outside of the memory must set NEEDS_RESET, and use nothing", 0
no_descriptor db "a head that is not a descriptor must set NEEDS_RESET, and use nothing", 0
circle db "a chain that is a circle must set NEEDS_RESET, and use nothing", 0
was db " is ", 0
should_be db ", and should be ", 0
text:
