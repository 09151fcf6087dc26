; A SIMVIRTIO driver for a device that acts a moment after each store. It sends the text that is appended to it, and ends
; at once, through the exit port. If a wait takes too long, it prints a sentence to port 0xE9, and ends.
bits 64
org 0x1000
WINDOW equ 0x100000
DEVICE_TABLE equ 0x1000A
TX_BUFFER equ 0x11000

; The message for a wait that fails, and the time of the longest one: 2^33 ticks of the time-stamp counter.
%macro start_wait 1
    mov r8d, %1
    rdtsc
    shl rdx, 32
    lea r9, [rdx + rax]
    mov eax, 1
    shl rax, 33
    add r9, rax
%endmacro

; Looks again, unless the time is over.
%macro look_again 1
    pause
    rdtsc
    shl rdx, 32
    add rax, rdx
    cmp rax, r9
    jb %1
    jmp failed
%endmacro

; Waits until the device status is this.
%macro wait_status 2
    start_wait %2
%%again:
    cmp byte [rdi + 6], %1
    je %%done
    look_again %%again
%%done:
%endmacro

; Waits until the device has taken all bytes.
%macro wait_consumed 1
    start_wait %1
%%again:
    cmp [rdi + 0x14], r13d
    je %%done
    look_again %%again
%%done:
%endmacro

; Stores the byte in bl in the queue, and moves TX head, which is r13d.
%macro push_byte 0
    mov [TX_BUFFER + r13], bl
    inc r13d
    xor edx, edx
    cmp r13d, r14d
    cmove r13d, edx
    mov [rdi + 0x10], r13d
%endmacro

    mov edi, WINDOW
    xor r13d, r13d
    mov r8d, no_magic
    cmp dword [rdi], 0x74726976
    jne failed
    movzx r14d, word [rdi + 4]

    mov bl, 'R'
    push_byte
    wait_consumed no_tail_r
    mov byte [rdi + 7], 0       ; DRIVER_ACK
    mov bl, 'C'
    push_byte
    wait_status 2, no_config
    wait_consumed no_tail_c
    mov r8d, no_table
    cmp word [DEVICE_TABLE], 1
    jne failed
    mov byte [rdi + 7], 4       ; DRIVER_OK
    wait_status 4, no_ready

    mov esi, text
.next:
    mov bl, [rsi]
    inc esi
    test bl, bl
    jz end
    lea r12d, [r13 + 1]
    xor edx, edx
    cmp r12d, r14d
    cmove r12d, edx
    start_wait no_space
.full:
    cmp [rdi + 0x14], r12d
    jne .free
    look_again .full
.free:
    push_byte
    jmp .next

failed:
    mov esi, r8d
.letter:
    lodsb
    test al, al
    jz end
    out 0xE9, al
    jmp .letter
end:
    xor eax, eax
    out 0xF4, al
    jmp end

no_magic: db "driver: the window does not begin with the magic: is it memory of the guest?", 10, 0
no_tail_r: db "driver: TX tail does not follow TX head after R", 10, 0
no_config: db "driver: device_status does not become CONFIG after C", 10, 0
no_tail_c: db "driver: TX tail does not follow TX head after C", 10, 0
no_table: db "driver: the device was not in the device table when its status became CONFIG", 10, 0
no_ready: db "driver: device_status does not become READY after DRIVER_OK", 10, 0
no_space: db "driver: the queue stays full: TX tail does not move", 10, 0
text:
