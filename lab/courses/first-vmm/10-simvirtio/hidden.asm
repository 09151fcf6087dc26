; A SIMVIRTIO driver: sends the text that is appended to it. If a step fails, it prints a sentence to port 0xE9, and halts.
; The device acts at each store, so no wait is long.
bits 64
org 0x1000
WINDOW equ 0x100000
DEVICE_TABLE equ 0x1000A
TX_BUFFER equ 0x11000

; Goes on if the last comparison was equal, and otherwise prints this sentence.
%macro must_be_equal 1
    mov r8d, %1
    jne failed
%endmacro

; Sends the byte in al. r13d is TX head.
%macro push_byte 0
    mov [TX_BUFFER + r13], al
    inc r13d
    xor edx, edx
    cmp r13d, r14d
    cmove r13d, edx
    mov [rdi + 0x10], r13d
%endmacro

    mov edi, WINDOW
    xor r13d, r13d
    cmp dword [rdi], 0x74726976
    must_be_equal no_magic
    movzx r14d, word [rdi + 4]
    lea eax, [r14 - 2]
    cmp eax, 4094
    mov r8d, no_length
    ja failed
    cmp byte [rdi + 6], 0
    must_be_equal no_initial

    mov al, 'R'
    push_byte
    cmp [rdi + 0x14], r13d
    must_be_equal no_tail_r
    cmp byte [rdi + 6], 0
    must_be_equal no_reset

    mov byte [rdi + 7], 0       ; DRIVER_ACK
    mov al, 'C'
    push_byte
    cmp byte [rdi + 6], 2
    must_be_equal no_config
    cmp [rdi + 0x14], r13d
    must_be_equal no_tail_c
    cmp word [DEVICE_TABLE], 1
    must_be_equal no_table
    cmp qword [DEVICE_TABLE + 8], WINDOW
    must_be_equal no_table

    mov byte [rdi + 7], 2       ; DRIVER
    cmp byte [rdi + 6], 2
    must_be_equal early
    mov byte [rdi + 7], 4       ; DRIVER_OK
    cmp byte [rdi + 6], 4
    must_be_equal no_ready
    cmp byte [rdi + 7], 4
    must_be_equal no_readback
    mov dword [rdi], 0x1234
    mov byte [rdi + 6], 2
    cmp dword [rdi], 0x74726976
    must_be_equal overwritten
    cmp byte [rdi + 6], 4
    must_be_equal overwritten

    mov esi, text
.next:
    lodsb
    test al, al
    jz end
    push_byte
    cmp [rdi + 0x14], r13d
    must_be_equal no_tail
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
    hlt
    jmp end

no_magic: db "driver: the window does not begin with the magic", 10, 0
no_length: db "driver: max_queue_len (16 bits at +4) is not 2 to 4096", 10, 0
no_initial: db "driver: device_status (8 bits at +6) is not 0 at the start", 10, 0
no_tail_r: db "driver: TX tail (+0x14) did not follow TX head after R", 10, 0
no_reset: db "driver: device_status is not RESET (0) after R", 10, 0
no_config: db "driver: device_status is not CONFIG (2) after C", 10, 0
no_tail_c: db "driver: TX tail (+0x14) did not follow TX head after C", 10, 0
no_table: db "driver: the device table at 0x1000a does not have the one device at 0x100000", 10, 0
early: db "driver: device_status changed when driver_status was DRIVER (2): READY needs DRIVER_OK (4)", 10, 0
no_ready: db "driver: device_status is not READY (4) after DRIVER_OK", 10, 0
no_readback: db "driver: driver_status does not read as it was stored", 10, 0
overwritten: db "driver: a store changed the magic or device_status, which the driver may only read", 10, 0
no_tail: db "driver: TX tail did not follow TX head while the text was sent: after slot max_queue_len - 1 comes slot 0", 10, 0
text:
