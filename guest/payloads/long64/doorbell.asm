; A SIMVIRTIO driver that rings the doorbell each time the device must look at the window. It sends its text in one
; batch, so it rings four times.
%include "driver.inc"

%macro ring 0
    mov dword [rdi + 0x1000], 0 ; queue 0, TX
%endmacro

    begin
    push_byte 'R'
    ring
    wait_consumed
    mov byte [rdi + 7], 0       ; DRIVER_ACK
    push_byte 'C'
    ring
    wait_status 2
    wait_consumed
    mov byte [rdi + 7], 4       ; DRIVER_OK
    ring
    wait_status 4
    mov r8, rdi
    lea rsi, [rel text]
    lea rdi, [0x11000 + rcx]
    lea edx, [rcx + text.end - text]
    mov ecx, text.end - text
    rep movsb
    mov rdi, r8
    mov ecx, edx
    mov [rdi + 0x10], ecx       ; TX head, once for the whole text
    ring
    wait_consumed
    finish
text: db "Ana are mere"
.end:
