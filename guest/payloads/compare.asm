; The guest of `vmm compare`, in ring 0 and in ring 3: a SIMVIRTIO driver that sends a message, waits until the device
; has taken all of it, then sends short messages and waits for the echo of each one. docs/compare.md lists its
; parameters.
;
; rdi: window; ecx: TX head; r8d: last known TX tail; ebx: RX tail; ebp: queue length; r11d: flags; r15d: zero.
bits 64

PARAMETERS equ 0x13000
FLAGS      equ PARAMETERS           ; bit 0: store TX head for each byte; bit 1: ring the doorbell
BYTES      equ PARAMETERS + 4       ; length of the message
ECHOES     equ PARAMETERS + 8       ; number of echoes
ECHO       equ PARAMETERS + 12      ; length of each echo, below the queue length
STARTED    equ PARAMETERS + 16      ; time-stamp counter before the message
ENDED      equ PARAMETERS + 24      ; time-stamp counter after the message
DONE       equ PARAMETERS + 32      ; number of echoes received
BEGUN      equ PARAMETERS + 40      ; time-stamp counter before the current echo
SAMPLES    equ 0x14000              ; ticks of each round trip, u32
PATTERN    equ 0x94000              ; bytes to send, repeatedly
PERIOD     equ 251 * 16

TX         equ 0x11000
RX         equ 0x12000

%macro ring 0
    test r11b, 2
    jz %%silent
    mov [rdi + 0x1000], r15d
%%silent:
%endmacro

; Reads the time-stamp counter into rax.
%macro now 0
    rdtsc
    shl rdx, 32
    or rax, rdx
%endmacro

; Sends one command of the handshake and waits until the device has taken it.
%macro command 1
    mov byte [TX + rcx], %1
    inc ecx
    cmp ecx, ebp
    cmove ecx, r15d
    mov [rdi + 0x10], ecx
    ring
%%again:
    pause
    cmp [rdi + 0x14], ecx
    jne %%again
%endmacro

%macro wait_status 1
%%again:
    pause
    cmp byte [rdi + 6], %1
    jne %%again
%endmacro

section .start exec
    mov edi, 0x100000
    xor ecx, ecx
    xor ebx, ebx
    xor r15d, r15d
    mov r11d, [FLAGS]
    cmp dword [rdi], 0x74726976
    mov al, 1
    jne end
    movzx ebp, word [rdi + 4]
    command 'R'
    mov byte [rdi + 7], 0           ; DRIVER_ACK
    command 'C'
    wait_status 2
    mov byte [rdi + 7], 4           ; DRIVER_OK
    ring
    wait_status 4
    mov r8d, ecx

    mov r10d, [BYTES]
    test r10d, r10d
    jz echoes
    now
    mov [STARTED], rax
.piece:
    mov r12d, PERIOD
    cmp r12d, r10d
    cmova r12d, r10d
    sub r10d, r12d
    mov esi, PATTERN
    call send
    test r10d, r10d
    jnz .piece
.taken:
    pause
    cmp [rdi + 0x14], ecx
    jne .taken
    mov r8d, ecx
    now
    mov [ENDED], rax

echoes:
    cmp [ECHOES], r15d
    je good
    xor r9d, r9d                    ; index of the echo, and of its first byte in the pattern
.next:
    now
    mov [BEGUN], rax
    mov r12d, [ECHO]
    mov esi, r9d
    and esi, 0x7FF                  ; leaves room in the pattern for the longest echo
    add esi, PATTERN
    mov r10d, esi
    call send
    mov r12d, [ECHO]
.receive:
    mov eax, [rdi + 0x18]           ; RX head
.more:
    cmp eax, ebx
    je wait_echo
    mov dl, [RX + rbx]
    cmp dl, [r10]
    jne bad
    inc r10d
    inc ebx
    cmp ebx, ebp
    cmove ebx, r15d
    dec r12d
    jnz .more
    mov [rdi + 0x1C], ebx           ; RX tail
    now
    sub rax, [BEGUN]
    mov [SAMPLES + r9 * 4], eax
    inc r9d
    mov [DONE], r9d
    cmp r9d, [ECHOES]
    jne .next

good:
    xor eax, eax
end:
    out 0xF4, al
bad:
    mov al, 2
    jmp end
wait_echo:
    pause
    jmp echoes.receive

; Sends r12d bytes (at least one) from rsi.
send:
    test r11b, 1
    jz batch
.byte:
    lea eax, [rcx + 1]
    cmp eax, ebp
    cmove eax, r15d
    cmp eax, r8d
    je .full
.room:
    mov dl, [rsi]
    mov [TX + rcx], dl
    mov ecx, eax
    mov [rdi + 0x10], ecx
    inc esi
    dec r12d
    jnz .byte
    ret
.full:
    pause
    mov r8d, [rdi + 0x14]
    cmp eax, r8d
    je .full
    jmp .room

; Sends r12d bytes (at least one) from rsi, and stores TX head once for as many bytes as fit.
batch:
    ; eax: number of contiguous free slots from TX head
    mov eax, r8d
    cmp eax, ecx
    ja .before_tail
    mov eax, ebp
    cmp r8d, 1
    sbb eax, r15d                   ; one slot stays free: if tail is 0, the last one
    inc eax
.before_tail:
    sub eax, ecx
    dec eax
    jz .full
    cmp eax, r12d
    cmova eax, r12d
    mov r13d, eax
    mov r14d, ecx
    lea edi, [TX + rcx]
    mov ecx, eax
    rep movsb
    mov edi, 0x100000
    lea ecx, [r14 + r13]
    cmp ecx, ebp
    cmove ecx, r15d
    sub r12d, r13d
    jz .publish
    ; After a wrap there may be more free slots at the start of the buffer.
    test ecx, ecx
    jnz .publish
    cmp r8d, 1
    ja batch
.publish:
    mov [rdi + 0x10], ecx
    ring
    test r12d, r12d
    jnz batch
    ret
.full:
    pause
    mov r8d, [rdi + 0x14]
    jmp batch
